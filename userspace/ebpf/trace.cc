// SPDX-License-Identifier: GPL-2.0-only
#include "ebpf/trace.h"

#include "base/fd.h"
#include "ebpf/embed.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <cerrno>
#include <unistd.h>

VQL_EMBED(vql_events_bpf, VQL_BPF_DIR "/events.bpf.o")

namespace vql {

namespace {

struct closer {
    void operator()(bpf_object* o) const { bpf_object__close(o); }
    void operator()(bpf_link* l) const { bpf_link__destroy(l); }
    void operator()(ring_buffer* r) const { ring_buffer__free(r); }
};

class attached_tracer : public request_tracer {
  public:
    explicit attached_tracer(callback cb) : callback_(std::move(cb)) {}
    result<void> load(const filter& f);
    result<void> attach(pid_t daemon);
    result<bool> wait(int timeout_ms) override;
    void finish() override;
    uint64_t dropped() const override;
    const std::string& warning() const override { return warning_; }

  private:
    bpf_program* program(const char* name) const {
        return bpf_object__find_program_by_name(object_.get(), name);
    }

    callback callback_;
    std::string warning_;
    int control_ = -1; // the object's
    std::unique_ptr<bpf_object, closer> object_;
    std::unique_ptr<ring_buffer, closer> events_;
    std::unique_ptr<bpf_link, closer> poll_lane_, kernel_lane_; // first to go
};

result<void> attached_tracer::load(const filter& f) {
    libbpf_set_print([](libbpf_print_level, const char*, va_list) { return 0; });
    bpf_object_open_opts options{};
    options.sz = sizeof(options);
    options.object_name = "vqlane_events";
    object_.reset(bpf_object__open_mem(vql_events_bpf_start, vql_events_bpf_bytes(), &options));
    if (!object_)
        return errno_error("BPF object", errno);
    if (const int err = bpf_object__load(object_.get()); err < 0)
        return error{errno_error("BPF programs cannot be loaded", -err).text +
                     " (tracing needs root, and Linux 6.1 or later with BTF)"};
    control_ = bpf_object__find_map_fd_by_name(object_.get(), "control");
    const uint32_t key = 0;
    const vql_trace_control wanted{f.slot, f.op, f.slower_than_ns, 0};
    if (bpf_map_update_elem(control_, &key, &wanted, BPF_ANY) < 0)
        return errno_error("BPF map control", errno);
    const auto one = [](void* self, void* data, size_t bytes) {
        if (bytes >= sizeof(vql_trace_io))
            static_cast<attached_tracer*>(self)->callback_(*static_cast<const vql_trace_io*>(data));
        return 0;
    };
    events_.reset(ring_buffer__new(bpf_object__find_map_fd_by_name(object_.get(), "events"), one,
                                   this, nullptr));
    if (!events_)
        return errno_error("BPF ring buffer", errno);
    return {};
}

result<void> attached_tracer::attach(pid_t daemon) {
    const std::string binary = "/proc/" + std::to_string(daemon) + "/exe";
    poll_lane_.reset(bpf_program__attach_usdt(program("poll_complete"), daemon, binary.c_str(),
                                              "vqlane", "complete", nullptr));
    const int poll_error = errno;
    kernel_lane_.reset(
        bpf_program__attach_raw_tracepoint(program("kernel_complete"), "vqlane_complete"));
    const int kernel_error = errno;

    if (!poll_lane_)
        warning_ = errno_error("the poll lane is not seen: uprobe on USDT probe vqlane:complete of "
                               "vqlaned, process " +
                                   std::to_string(daemon),
                               poll_error)
                       .text;
    else if (!kernel_lane_ && access("/sys/module/vqlane", F_OK) == 0)
        warning_ =
            errno_error("the kernel lane is not seen: tracepoint vqlane_complete of the module",
                        kernel_error)
                .text;
    if (!poll_lane_ && !kernel_lane_)
        return error{warning_ + " (are uprobes in this kernel, CONFIG_UPROBES, and is it of this "
                                "version?); nor is the module there"};
    return {};
}

result<bool> attached_tracer::wait(int timeout_ms) {
    const int n = ring_buffer__poll(events_.get(), timeout_ms);
    if (n < 0 && n != -EINTR)
        return errno_error("BPF ring buffer", -n);
    return n >= 0;
}

void attached_tracer::finish() {
    poll_lane_.reset();
    kernel_lane_.reset();
    ring_buffer__consume(events_.get());
}

uint64_t attached_tracer::dropped() const {
    const uint32_t key = 0;
    vql_trace_control now{};
    bpf_map_lookup_elem(control_, &key, &now);
    return now.dropped;
}

} // namespace

result<std::unique_ptr<request_tracer>> request_tracer::open(pid_t daemon, const filter& f,
                                                             callback cb) {
    auto t = std::make_unique<attached_tracer>(std::move(cb));
    if (auto ok = t->load(f); !ok)
        return ok.failure();
    if (auto ok = t->attach(daemon); !ok)
        return ok.failure();
    return std::unique_ptr<request_tracer>(std::move(t));
}

} // namespace vql
