// SPDX-License-Identifier: GPL-2.0-only
// reader DEVICE DEPTH REQUESTS ROUNDS: reads 4 KiB blocks of a disk, DEPTH of them in flight, and
// prints what one costs the machine, in instructions, as JSON. On a machine whose only CPU has a
// clock of its instructions (tests/vm/host-run --count-instructions) the time stamp counter is the
// number of all instructions executed by anybody. The reader is what the CPU does when there is
// nothing else to do (SCHED_IDLE): it never sleeps, but looks for completions, and how often it
// looked in vain is subtracted. So no CPU is ever idle, and each instruction of kernel, servers and
// reader from one end of a round to the other is counted.
//
// DEVICE is a vhost-user socket or a /dev/vhost-vdpa-N, of which the reader is the driver, or a
// block device, read through io_uring with O_DIRECT, buffers and file registered. Without one,
// DEVICE is "none": the driver's own share, with rings that a few instructions of the reader itself
// answer.
#include "guest/blk_driver.h"
#include "guest/vhost_user_transport.h"
#include "guest/vhost_vdpa_transport.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <liburing.h>
#include <memory>
#include <sched.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <vector>
#include <x86intrin.h>

namespace vql::guest {
namespace {

constexpr uint32_t block_bytes = 4096;
constexpr uint64_t block_sectors = block_bytes / sector_bytes;
// The disk's first blocks; each begins with its number, plus one (tests/bench/vm/run writes them).
constexpr uint64_t blocks = 4096;
constexpr uint16_t ring_size = 128;
constexpr uint64_t patience = 1'000'000'000; // looks until a completion is given up

uint64_t block_of(uint64_t request) {
    return request * 37 % blocks;
}

void check_block(const std::byte* data, uint64_t block) {
    uint64_t number = 0;
    std::memcpy(&number, data, sizeof(number));
    if (number != block + 1) {
        throw guest_error("block " + std::to_string(block) + " reads as number " +
                          std::to_string(number) + ", not as " + std::to_string(block + 1));
    }
}

// A device of a few instructions: it answers, when asked to, what it finds in its one queue, and
// reads no data.
class echo_device : public transport {
  public:
    void disconnect() override {}
    void reconnect() override {}
    bool outlives_daemon() const override { return true; }
    void forget_rings() override {}
    uint64_t device_features() override { return bit(feature_version_1) | bit(feature_event_idx); }
    void set_driver_features(uint64_t) override {}
    unsigned max_queues() override { return 1; }
    void share_memory(const guest_memory& memory) override { memory_ = &memory; }
    void add_slot(const memory_slot&) override {}
    void remove_slot(const memory_slot&) override {}
    void start_queues(std::span<const vring_setup> queues) override {
        desc_ = memory_->as<vring_descriptor>(queues[0].desc);
        avail_ = memory_->as<uint16_t>(queues[0].avail);
        used_ = memory_->as<uint16_t>(queues[0].used);
    }
    uint16_t stop_queue(unsigned) override { return at_; }
    void enable_queue(unsigned, bool) override {}
    void set_call(unsigned, std::optional<int>) override {}
    bool wait_ring_error(unsigned, milliseconds) override { return false; }
    void read_config(uint32_t, std::span<std::byte>) override {}
    void write_config(uint32_t, std::span<const std::byte>) override {}
    bool wait_config_change(milliseconds) override { return false; }
    uint8_t status() override { return status_driver_ok; }
    void set_status(uint8_t) override {}

    // The driver's thread is ours, too, so nothing has an order to keep.
    void answer() {
        for (; at_ != avail_[1]; at_++) {
            const uint16_t head = avail_[2 + at_ % ring_size];
            const vring_descriptor& status = desc_[desc_[desc_[head].next].next];
            *memory_->at(status.addr) = std::byte{blk_ok};
            const vring_used_element element{head, block_bytes + 1};
            std::memcpy(used_ + 2 + 4 * (at_ % ring_size), &element, sizeof(element));
        }
        used_[1] = at_;
        used_[2 + 4 * ring_size] = at_; // and it asks for the next kick
    }

  private:
    const guest_memory* memory_ = nullptr;
    const vring_descriptor* desc_ = nullptr;
    const uint16_t* avail_ = nullptr;
    uint16_t* used_ = nullptr;
    uint16_t at_ = 0;
};

// A reader of either kind: submit() makes a request ready in one of its slots, flush() gives what
// is ready to the device, is_waiting() is false when reap() would find a completion, and reap()
// calls back with each one's slot.

class driver_reader {
  public:
    driver_reader(const std::string& path, unsigned depth)
        : memory_(guest_memory::in_pieces(0, 64 << 20, 1)), link_(open(path)),
          echo_(dynamic_cast<echo_device*>(link_.get())), driver_(*memory_, *link_, options(depth)),
          buffers_(memory_->allocate(depth * block_bytes, block_bytes)) {
        driver_.start();
    }

    void submit(unsigned slot, uint64_t block) {
        blk_request& request = *driver_.acquire(0);
        driver_.shape(request, blk_op::read, block * block_sectors, buffer(slot), block_bytes);
        request.context = slot;
        if (!driver_.submit(request)) {
            throw guest_error("the ring is full");
        }
    }
    void flush() {
        driver_.ring(0);
        if (echo_ != nullptr) {
            echo_->answer();
        }
    }
    bool is_waiting() const { return queue().used_index() == seen_; }
    template <typename Done>
    void reap(Done done) {
        do {
            while (blk_request* request = driver_.poll(0)) {
                if (!request->ok()) {
                    throw guest_error("a read has status " + std::to_string(request->status));
                }
                seen_++;
                driver_.release(*request);
                done(static_cast<unsigned>(request->context));
            }
            // As a driver does that sleeps until the next interrupt.
        } while (!queue().arm_interrupt());
    }
    void check(unsigned slot, uint64_t block) const {
        if (echo_ == nullptr) {
            check_block(memory_->at(buffer(slot)), block);
        }
    }

  private:
    static blk_options options(unsigned depth) {
        blk_options options;
        options.queue_size = ring_size;
        options.depth = depth;
        options.indirect = false;
        return options;
    }
    static std::unique_ptr<transport> open(const std::string& path) {
        if (path == "none") {
            return std::make_unique<echo_device>();
        }
        if (path.starts_with("/dev/vhost-vdpa-")) {
            return std::make_unique<vhost_vdpa_transport>(path);
        }
        return std::make_unique<vhost_user_transport>(path);
    }
    uint64_t buffer(unsigned slot) const { return buffers_ + uint64_t{slot} * block_bytes; }
    virtqueue_driver& queue() const { return driver_.queue(0); }

    std::unique_ptr<guest_memory> memory_;
    std::unique_ptr<transport> link_;
    echo_device* echo_; // link_, if it is one
    mutable blk_driver driver_;
    uint64_t buffers_;
    uint16_t seen_ = 0;
};

class uring_reader {
  public:
    uring_reader(const std::string& path, unsigned depth)
        : memory_(make_memfd("reader", depth * block_bytes).get(), depth * block_bytes),
          file_(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)) {
        if (!file_) {
            throw_errno("cannot open " + path);
        }
        need(io_uring_queue_init(ring_size, &ring_, 0), "io_uring");
        const int fd = file_.get();
        need(io_uring_register_files(&ring_, &fd, 1), "registering the file");
        const iovec buffers{memory_.bytes().data(), memory_.bytes().size()};
        need(io_uring_register_buffers(&ring_, &buffers, 1), "registering buffers");
    }
    uring_reader(const uring_reader&) = delete;
    uring_reader& operator=(const uring_reader&) = delete;
    ~uring_reader() { io_uring_queue_exit(&ring_); }

    void submit(unsigned slot, uint64_t block) {
        io_uring_sqe* e = io_uring_get_sqe(&ring_);
        io_uring_prep_read_fixed(e, 0, &memory_.bytes()[size_t{slot} * block_bytes], block_bytes,
                                 block * block_bytes, 0);
        e->flags |= IOSQE_FIXED_FILE;
        io_uring_sqe_set_data64(e, slot);
    }
    void flush() {
        if (io_uring_sq_ready(&ring_) != 0) {
            need(io_uring_submit(&ring_), "submitting");
        }
    }
    bool is_waiting() const { return io_uring_cq_ready(&ring_) == 0; }
    template <typename Done>
    void reap(Done done) {
        io_uring_cqe* e = nullptr;
        while (io_uring_cq_ready(&ring_) != 0 && io_uring_peek_cqe(&ring_, &e) == 0) {
            if (e->res != static_cast<int>(block_bytes)) {
                throw guest_error("a read has result " + std::to_string(e->res));
            }
            const auto slot = static_cast<unsigned>(e->user_data);
            io_uring_cqe_seen(&ring_, e);
            done(slot);
        }
    }
    void check(unsigned slot, uint64_t block) const {
        check_block(&memory_.bytes()[size_t{slot} * block_bytes], block);
    }

  private:
    static void need(int result, const char* what) {
        if (result < 0) {
            errno = -result;
            throw_errno(what);
        }
    }

    mapping memory_;
    unique_fd file_;
    io_uring ring_{};
};

// Looks until there is a completion, or `most` times; how often in vain. One function for the
// measurement and for finding out what a look costs, so that the two cost the same.
template <typename Reader>
[[gnu::noinline]] uint64_t look(const Reader& reader, uint64_t most) {
    uint64_t looks = 0;
    while (looks < most && reader.is_waiting()) {
        looks++;
    }
    return looks;
}

// The fewest instructions of so many looks: those during which nothing else ran.
template <typename Reader>
uint64_t cost_of_looks(const Reader& reader, uint64_t looks) {
    uint64_t least = ~uint64_t{0};
    for (int i = 0; i < 20; i++) {
        const uint64_t start = __rdtsc();
        look(reader, looks);
        least = std::min<uint64_t>(least, __rdtsc() - start);
    }
    return least;
}

// Of one, with nothing in flight. The difference leaves the call out.
template <typename Reader>
double cost_of_look(const Reader& reader) {
    constexpr uint64_t looks = 10'000;
    return static_cast<double>(cost_of_looks(reader, 2 * looks) - cost_of_looks(reader, looks)) /
           static_cast<double>(looks);
}

// When the kernel's timer ticked last: this clock moves with it, and only then.
uint64_t last_tick() {
    timespec at{};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &at);
    return static_cast<uint64_t>(at.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(at.tv_nsec);
}

struct round {
    uint64_t counted = 0; // requests
    double instructions = 0;
};

// In stretches of `depth` completions, of which those do not count in which the timer ticked: the
// tick and what the kernel does once in a while are not the requests'.
template <typename Reader>
round measure(Reader& reader, unsigned depth, uint64_t requests, double per_look) {
    std::vector<uint64_t> in(depth); // block, by slot
    uint64_t sent = 0, done = 0, looks = 0;
    const auto send = [&](unsigned slot) {
        in[slot] = block_of(sent++);
        reader.submit(slot, in[slot]);
    };
    round result;
    uint64_t first = 0, tick = last_tick(), start = __rdtsc();
    for (unsigned slot = 0; slot < depth; slot++) {
        send(slot);
    }
    reader.flush();
    while (done < requests) {
        const uint64_t now = look(reader, patience);
        if (now == patience) {
            throw timeout_error("no completion");
        }
        looks += now;
        reader.reap([&](unsigned slot) {
            reader.check(slot, in[slot]);
            done++;
            if (sent < requests) {
                send(slot);
            }
        });
        reader.flush();
        if (done - first >= depth) {
            const uint64_t end = __rdtsc();
            const uint64_t ticked = last_tick();
            if (ticked == tick) {
                result.counted += done - first;
                result.instructions +=
                    static_cast<double>(end - start) - per_look * static_cast<double>(looks);
            }
            first = done;
            looks = 0;
            tick = ticked;
            start = __rdtsc();
        }
    }
    return result;
}

template <typename Reader>
void report(Reader& reader, unsigned depth, uint64_t requests, unsigned rounds) {
    const double per_look = cost_of_look(reader);
    // Until all is warm, and a drive that is held back has used up what it had saved.
    measure(reader, depth, requests / 4 + depth, per_look);
    std::string text;
    for (unsigned i = 0; i < rounds; i++) {
        const round r = measure(reader, depth, requests, per_look);
        if (r.counted == 0) {
            throw guest_error("the timer ticked during each request");
        }
        char line[96];
        std::snprintf(line, sizeof(line), "%s{\"instructions\": %.1f, \"counted\": %llu}",
                      i == 0 ? "" : ", ", r.instructions / static_cast<double>(r.counted),
                      static_cast<unsigned long long>(r.counted));
        text += line;
    }
    std::printf("{\"depth\": %u, \"requests\": %llu, \"look\": %.3f, \"rounds\": [%s]}\n", depth,
                static_cast<unsigned long long>(requests), per_look, text.c_str());
}

void run(const std::string& path, unsigned depth, uint64_t requests, unsigned rounds) {
    sched_param none{};
    if (sched_setscheduler(0, SCHED_IDLE, &none) != 0) {
        throw_errno("SCHED_IDLE");
    }
    struct stat what {};
    if (stat(path.c_str(), &what) == 0 && S_ISBLK(what.st_mode)) {
        uring_reader reader(path, depth);
        report(reader, depth, requests, rounds);
    } else {
        driver_reader reader(path, depth);
        report(reader, depth, requests, rounds);
    }
}

} // namespace
} // namespace vql::guest

int main(int argc, char** argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: %s DEVICE DEPTH REQUESTS ROUNDS\n", argv[0]);
        return 2;
    }
    try {
        vql::guest::run(argv[1], static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)),
                        std::strtoull(argv[3], nullptr, 10),
                        static_cast<unsigned>(std::strtoul(argv[4], nullptr, 10)));
    } catch (const std::exception& e) {
        std::fprintf(stderr, "reader: error: %s: %s\n", argv[1], e.what());
        return 1;
    }
    return 0;
}
