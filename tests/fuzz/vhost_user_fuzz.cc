// SPDX-License-Identifier: GPL-2.0-only
// Hostile vhost-user clients: the input is a list of sends to a real vhost_user_server over a real
// socket, with real descriptors. Its queues are started and stopped by a host that checks what it
// is given. A record is: how many descriptors of which kind (1 byte), length (2 bytes), that many
// bytes.
#include "fuzz/fuzz.h"

#include "base/event_loop.h"
#include "base/log.h"
#include "frontend/vhost_user.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

namespace {

using namespace vql;

void require_at(bool holds, int line, const char* what) {
    if (holds)
        return;
    std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, line, what);
    std::abort();
}
#define require(holds) require_at(holds, __LINE__, #holds)

class checking_host : public queue_host {
  public:
    explicit checking_host(event_loop& loop) : loop_(loop) {
        geometry_.id = "fuzz";
        geometry_.sectors = 2048;
        geometry_.discard = true;
        geometry_.queues = 2;
        geometry_.queue_size = 64;
    }
    const blk_geometry& geometry() const override { return geometry_; }
    void start_queue(virtqueue& q) override {
        require(!running_[q.index]);
        running_[q.index] = true;
        require(vql_queue_size_valid(q.ring.num) && q.ring.num <= geometry_.queue_size);
        require(inside(q, q.ring.desc, vql_desc_bytes(q.ring.num)));
        require(inside(q, q.ring.avail, vql_avail_bytes(q.ring.num)));
        require(inside(q, q.ring.used, vql_used_bytes(q.ring.num)));
        for (const uint16_t head : q.resubmit)
            require(head < q.ring.num);
        // What a poller does first, on memory that may be gone.
        vql_chain chain;
        if (vql_ring_pending(&q.ring) > 0)
            (void)vql_chain_walk(&q.ring, &q.mem, vql_ring_peek(&q.ring), &chain);
        vql_ring_disarm(&q.ring);
        if (q.log)
            q.log->mark(q.used_log_guest, 4096);
        if (q.inflight)
            q.inflight.take(0);
    }
    void stop_queue(virtqueue& q, std::function<void()> done) override {
        require(running_[q.index]);
        loop_.post([this, &q, done] {
            vql_ring_arm(&q.ring);
            running_[q.index] = false;
            done();
        });
    }
    void set_call(virtqueue& q, unique_fd call) override { q.call = std::move(call); }
    result<void> memory_mapped(guest_memory&) override { return {}; }
    void memory_unmapped(guest_memory&, std::function<void()> done) override {
        require(!running_[0] && !running_[1]);
        loop_.post(std::move(done));
    }
    bool any_running() const { return running_[0] || running_[1]; }

  private:
    static bool inside(const virtqueue& q, const void* p, uint64_t bytes) {
        const auto at = reinterpret_cast<uintptr_t>(p);
        for (const vql_region& r : q.memory->regions()) {
            const uintptr_t offset = at - reinterpret_cast<uintptr_t>(r.host);
            if (offset < r.bytes && r.bytes - offset >= bytes)
                return true;
        }
        return false;
    }
    event_loop& loop_;
    blk_geometry geometry_;
    std::array<bool, 2> running_{};
};

struct setup {
    event_loop loop;
    checking_host host{loop};
    vhost_user_server server{loop, host, "fuzz"};
    std::string path = "/tmp/vql-fuzz-" + std::to_string(getpid()) + ".sock";
    setup() {
        set_log_level(log_level::error);
        require(bool(guard_guest_memory()));
        require(bool(server.listen(path, {})));
    }
};

unique_fd make_fd(unsigned kind) {
    if (kind == 0)
        return unique_fd(eventfd(0, EFD_CLOEXEC));
    unique_fd fd(memfd_create("fuzz", MFD_CLOEXEC));
    require(ftruncate(fd.get(), kind == 1 ? 1 << 20 : 8192) == 0);
    return fd;
}

void send_record(int client, uint8_t fds, const uint8_t* data, size_t size) {
    const unsigned count = fds & 15, kind = (fds >> 4) % 3;
    std::vector<unique_fd> owned;
    alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(15 * sizeof(int))> control{};
    iovec iov = {const_cast<uint8_t*>(data), size};
    msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    if (count) {
        msg.msg_control = control.data();
        msg.msg_controllen = CMSG_SPACE(count * sizeof(int));
        cmsghdr* c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(count * sizeof(int));
        for (unsigned i = 0; i < count; i++) {
            owned.push_back(make_fd(kind));
            const int fd = owned.back().get();
            std::memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(fd));
        }
    }
    (void)sendmsg(client, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    // Half of the memory is taken away again right after it was shared.
    if (kind == 2 && !owned.empty())
        (void)!ftruncate(owned[0].get(), 0);
}

} // namespace

int fuzz_vhost_user(const uint8_t* data, size_t size) {
    static setup s;
    unique_fd client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un addr{};
    addr.sun_family = AF_UNIX;
    std::memcpy(addr.sun_path, s.path.c_str(), s.path.size() + 1);
    require(connect(client.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) == 0);
    while (!s.server.connected())
        s.loop.run_once(0);

    std::array<uint8_t, 4096> replies; // NOLINT: filled by the call
    for (int sends = 0; size >= 3 && sends < 64; sends++) {
        const size_t length = std::min<size_t>(data[1] | size_t{data[2]} << 8, size - 3);
        if (length)
            send_record(client.get(), data[0], data + 3, length);
        data += 3 + length;
        size -= 3 + length;
        for (int i = 0; i < 4; i++)
            s.loop.run_once(0);
        (void)recv(client.get(), replies.data(), replies.size(), MSG_DONTWAIT);
    }
    client.reset();
    for (int i = 0; i < 1000 && s.server.connected(); i++)
        s.loop.run_once(0); // it is dropped as soon as its queues stand still
    require(!s.server.connected() && !s.host.any_running() && !s.server.queues_running());
    return 0;
}

#ifdef VQL_FUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    return fuzz_vhost_user(data, size);
}
#endif
