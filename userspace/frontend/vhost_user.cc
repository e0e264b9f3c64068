// SPDX-License-Identifier: GPL-2.0-only
// The session: sockets, and the order in which queues stop and run. What each message means is in
// vhost_user_messages.cc.
#include "frontend/vhost_user.h"

#include "base/log.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace vql {

using namespace vhost_user;

vhost_user_server::vhost_user_server(event_loop& loop, queue_host& host, std::string name)
    : frontend(loop, host, std::move(name)) {
    for (uint32_t i = 0; i < host_.geometry().queues; i++) {
        rings_.push_back(std::make_unique<vring>());
        rings_.back()->vq.index = i;
    }
}

vhost_user_server::~vhost_user_server() {
    if (listening_) {
        loop_.remove(listener_.get());
        unlink(path_.c_str());
    }
    if (client_)
        loop_.remove(client_.get());
}

namespace {

// Is someone listening at @path? A dead daemon's socket refuses.
bool socket_alive(const sockaddr_un& addr) {
    unique_fd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    return connect(probe.get(), reinterpret_cast<const sockaddr*>(&addr), sizeof(addr)) == 0 ||
           errno != ECONNREFUSED;
}

} // namespace

result<void> vhost_user_server::listen(const std::string& path, const socket_access& access) {
    sockaddr_un addr{};
    addr.sun_family = AF_UNIX;
    if (path.size() >= sizeof(addr.sun_path))
        return error{path + ": socket path longer than 107 bytes"};
    std::memcpy(addr.sun_path, path.c_str(), path.size() + 1);

    struct stat st {};
    if (lstat(path.c_str(), &st) == 0) {
        if (!S_ISSOCK(st.st_mode))
            return error{path + ": exists and is not a socket; remove it or choose another path"};
        if (socket_alive(addr))
            return error{path + ": another process listens there"};
        unlink(path.c_str());
    }
    listener_.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!listener_)
        return errno_error("socket", errno);
    // Nobody can connect before listen(), so there is no moment with a wider mode.
    if (bind(listener_.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) < 0)
        return errno_error(path, errno);
    path_ = path;
    if (auto ok = give_access(path, access); !ok) {
        unlink(path.c_str());
        return ok;
    }
    if (::listen(listener_.get(), 4) < 0)
        return errno_error(path, errno);
    loop_.add(listener_.get(), EPOLLIN, [this](uint32_t) { accept_client(); });
    listening_ = true;
    return {};
}

namespace {

// Has the other side closed it? What it sent before may still be unread.
bool hung_up(const unique_fd& fd) {
    pollfd p{fd.get(), POLLRDHUP, 0};
    return poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

} // namespace

void vhost_user_server::accept_client() {
    spare_descriptor& spare = loop_.spare();
    auto a = spare.accept(listener_.get());
    if (a.spare) {
        turn_away(peer_of(a.fd.get()), "this process has no file descriptor left");
        a.fd.reset();
        spare.refill();
    } else if (a.fd) {
        admit(std::move(a.fd));
    } else if (spare.short_of()) { // it would be readable for ever
        loop_.modify(listener_.get(), 0);
        paused_ = true;
    }
}

void vhost_user_server::admit(unique_fd client) {
    const peer who = peer_of(client.get());
    if (!client_)
        return begin(std::move(client), who);
    if ((ending_ || hung_up(client_)) && (!next_ || hung_up(next_))) {
        next_ = std::move(client);
        next_who_ = who;
        return;
    }
    turn_away(who,
              "in use by " + (next_ ? next_who_ : who_).text() + "; a disk has one VMM at a time");
}

void vhost_user_server::turn_away(const peer& who, const std::string& why) {
    turned_away_.refused++;
    turned_away_.last_refused = who;
    say(log_level::warning, ": turned away " + who.text() + ": " + why);
}

void vhost_user_server::begin(unique_fd client, peer who) {
    client_ = std::move(client);
    who_ = std::move(who);
    say(log_level::debug, ": client connected: " + who_.text());
    reader_ = message_reader();
    // Edge-triggered: while busy we do not read, and when no longer busy we look by ourselves.
    loop_.add(client_.get(), EPOLLIN | EPOLLRDHUP | EPOLLET, [this](uint32_t) { read_messages(); });
}

namespace {

struct received {
    ssize_t bytes;
    std::vector<unique_fd> fds;
    bool truncated;
    bool no_room; // … since this process has no descriptor left
};

received receive(int fd, std::span<uint8_t> into) {
    alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(16 * sizeof(int))> control{};
    iovec iov = {into.data(), into.size()};
    msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.data();
    msg.msg_controllen = control.size();
    received r{recvmsg(fd, &msg, MSG_CMSG_CLOEXEC), {}, false, false};
    if (r.bytes < 0)
        return r;
    r.truncated = msg.msg_flags & MSG_CTRUNC;
    if (r.truncated) {
        const unique_fd another(fcntl(fd, F_DUPFD_CLOEXEC, 0));
        r.no_room = !another;
    }
    for (cmsghdr* c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        const size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int received_fd = -1;
            std::memcpy(&received_fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            r.fds.emplace_back(received_fd);
        }
    }
    return r;
}

} // namespace

void vhost_user_server::read_messages() {
    // A client that sends without end gets a turn like the others.
    for (int turn = 256; client_ && !busy_; turn--) {
        if (!turn) {
            busy_ = true; // until the turn comes: nothing else starts in between
            return loop_.post([this] { idle_then([this] { read_messages(); }); });
        }
        received r = receive(client_.get(), reader_.want());
        if (r.bytes < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return;
            return drop(std::strerror(errno));
        }
        if (r.bytes == 0)
            return drop("");
        if (r.truncated)
            return drop(r.no_room ? "its file descriptors found no room: this process has none left"
                                  : "too many file descriptors in a message");
        reader_.got(size_t(r.bytes), std::move(r.fds));
        if (reader_.error())
            return drop(reader_.error());
        if (reader_.complete())
            handle(reader_.take());
    }
}

void vhost_user_server::handle(message m) {
    if (const char* wrong = check_message(m))
        return drop(std::string(request_name(m.head.request)) + ": " + wrong);
    auto rings = rings_to_stop(m);
    // Nothing to wait for: done here, since a continuation that is called at once reads the next
    // message from within, and a client may send any number of them.
    if (rings.empty() && (!memory_message(m.head.request) || memory_.empty()))
        return finish(m, apply(m));

    // The message waits in the continuation until the queues it concerns stand still.
    auto held = std::make_shared<message>(std::move(m));
    stop_then(std::move(rings), [this, held] {
        const auto go_on = [this, held] {
            finish(*held, apply(*held));
            read_messages();
        };
        if (!memory_message(held->head.request) || memory_.empty())
            return go_on();
        busy_ = true;
        host_.memory_unmapped(memory_, [this, go_on] { idle_then(go_on); });
    });
}

void vhost_user_server::finish(message& m, outcome o) {
    const bool ack = m.need_reply() && (protocol_features_ & (1u << PROTOCOL_F_REPLY_ACK));

    if (memory_message(m.head.request)) {
        auto ok = host_.memory_mapped(memory_);
        if (!ok && o.refusal.empty())
            return drop(std::string(request_name(m.head.request)) + ": " + ok.failure().text);
    }
    if (!o.refusal.empty()) {
        const std::string why = std::string(request_name(m.head.request)) + ": " + o.refusal;
        if (!ack || o.has_reply)
            return drop(why);
        say(log_level::warning, ": " + why);
    }
    if (!o.has_reply && ack) {
        o = reply(uint64_t{!o.refusal.empty()});
    }
    if (o.has_reply) {
        header head{m.head.request, VERSION | FLAG_REPLY, uint32_t(o.reply.size())};
        std::array<iovec, 2> iov = {{{&head, sizeof(head)}, {o.reply.data(), o.reply.size()}}};
        alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(sizeof(int))> control{};
        msghdr msg{};
        msg.msg_iov = iov.data();
        msg.msg_iovlen = 2;
        unique_fd fd(o.reply_fd);
        if (fd) {
            msg.msg_control = control.data();
            msg.msg_controllen = control.size();
            cmsghdr* c = CMSG_FIRSTHDR(&msg);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof(int));
            const int raw = fd.get();
            std::memcpy(CMSG_DATA(c), &raw, sizeof(int));
        }
        const ssize_t n = sendmsg(client_.get(), &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n != ssize_t(sizeof(head) + o.reply.size()))
            return drop("does not read its replies");
    }
    run_complete_rings();
}

namespace {

constexpr const char* share_hint =
    " (QEMU: share=on on the memory backend, which -machine memory-backend= names)";

// What @fd, an eventfd that nobody reads, has counted; 0 when that cannot be learned.
uint64_t eventfd_count(const unique_fd& fd) {
    const std::string path = "/proc/self/fdinfo/" + std::to_string(fd.get());
    const unique_fd file(fd ? ::open(path.c_str(), O_RDONLY | O_CLOEXEC) : -1);
    std::array<char, 512> text{};
    if (!file || ::read(file.get(), text.data(), text.size() - 1) <= 0)
        return 0;
    constexpr const char* key = "eventfd-count:";
    const char* const at = std::strstr(text.data(), key);
    return at ? std::strtoull(at + std::strlen(key), nullptr, 16) : 0;
}

} // namespace

// A ring runs when all it needs is there. This is the only place that starts one.
void vhost_user_server::run_complete_rings() {
    const bool needs_enable = features_ & (1ull << F_PROTOCOL_FEATURES);
    for (auto& r : rings_) {
        if (r->running || !client_ || !r->kick_set || !r->addr || !r->num || memory_.empty() ||
            (needs_enable && !r->enabled) || r->vq.ring_error)
            continue;
        if (auto ok = prepare_ring(*r); !ok)
            return drop("queue " + std::to_string(r->vq.index) + ": " + ok.failure().text);
        r->kicks = eventfd_count(r->vq.kick);
        r->answered = vql_read_once(&r->vq.answered);
        start_ring(*r);
        dropped_.clear();
        // A guest that was saved before a resize, or whose daemon was replaced since, goes by the
        // size it knew: it learns the new one when it looks.
        if (!std::exchange(size_told_, true))
            tell_config_change();
    }
}

// Set up, but for the memory?
bool vhost_user_server::waits_for_memory(const vring& r) const {
    const bool needs_enable = features_ & (1ull << F_PROTOCOL_FEATURES);
    return client_ && !ending_ && memory_.empty() && r.kick_set && r.addr && r.num &&
           (!needs_enable || r.enabled);
}

// Kicked since it runs, and nothing was ever in the ring: what the driver writes there may not be
// what we read. (Or its VMM kicks once by itself, and its driver has asked for nothing yet.)
bool vhost_user_server::kicked_without_work(const vring& r) const {
    return r.running && !busy_ && vql_load_acquire(&r.vq.ring.avail->idx) == 0 &&
           vql_load_acquire(&r.vq.ring.used->idx) == 0 && eventfd_count(r.vq.kick) > r.kicks;
}

std::string vhost_user_server::problem() const {
    if (!client_)
        return dropped_.empty() ? "" : "its last client was dropped: " + dropped_;
    const bool idle = std::none_of(rings_.begin(), rings_.end(), [](const auto& r) {
        return vql_read_once(&r->vq.answered) != r->answered;
    });
    for (const auto& r : rings_) {
        const std::string queue = "queue " + std::to_string(r->vq.index);
        if (const int error = vql_read_once(&r->vq.ring_error))
            return queue + " stopped: " + vql_ring_error_text(error);
        if (waits_for_memory(*r))
            return queue + " cannot start: its VMM shares no guest memory" + share_hint;
        if (idle && kicked_without_work(*r))
            return queue +
                   " was kicked and is empty: its driver has asked for nothing yet, or the guest's "
                   "memory is not shared" +
                   share_hint;
    }
    return {};
}

frontend::client_report vhost_user_server::clients() const {
    client_report report = turned_away_;
    if (client_)
        report.client = who_;
    return report;
}

void vhost_user_server::tick() {
    if (std::exchange(paused_, false) && listening_)
        loop_.modify(listener_.get(), EPOLLIN);
    // Told when it is there for a second: between two messages much is incomplete. What a ring
    // broke for, or a client was dropped for, was said then.
    const std::string now = client_ ? problem() : "";
    if (!now.empty() && now == seen_problem_ && now != told_problem_) {
        told_problem_ = now;
        if (std::none_of(rings_.begin(), rings_.end(),
                         [](const auto& r) { return vql_read_once(&r->vq.ring_error) != 0; }))
            say(log_level::warning, ": " + now);
    }
    if (now.empty())
        told_problem_.clear();
    seen_problem_ = now;
    frontend::tick();
}

result<void> vhost_user_server::prepare_ring(vring& r) {
    virtqueue& q = r.vq;
    ring_setup s;
    s.desc = memory_.from_vmm(r.addr->desc, vql_desc_bytes(r.num));
    s.avail = memory_.from_vmm(r.addr->avail, vql_avail_bytes(r.num));
    s.used = memory_.from_vmm(r.addr->used, vql_used_bytes(r.num));
    s.num = r.num;
    s.next_avail = r.base;
    s.features = features_;
    s.writeback = writeback_;
    s.record = inflight_ ? inflight_->queue(q.index) : inflight_queue();
    s.taken_over = true; // the VMM's index may be older than its region
    if (s.record && s.record.num() < r.num) {
        say(log_level::info, " queue " + std::to_string(q.index) +
                                 ": the in-flight region is too small for it; requests in flight "
                                 "are lost if this daemon dies");
        s.record = {};
    }
    if (auto ok = prepare_queue(q, s, memory_, host_.geometry()); !ok)
        return ok;
    q.log = features_ & (1ull << F_LOG_ALL) ? log_.get() : nullptr;
    q.log_used = r.addr->flags & VRING_F_LOG;
    q.used_log_guest = r.addr->log;
    return {};
}

void vhost_user_server::reset_rings() {
    for (auto& r : rings_) {
        r->kick_set = false;
        r->enabled = false;
        r->addr.reset();
        r->base = 0;
        r->vq.ring_error = 0;
    }
    status_ = 0;
    size_told_ = false;
}

void vhost_user_server::drop(const std::string& reason) {
    if (!client_ || ending_)
        return;
    if (reason.empty())
        say(log_level::debug, ": client disconnected");
    else
        say(log_level::warning, ": client dropped: " + reason + " (" + who_.text() + ")");
    dropped_ = reason;
    client_gone([this] {
        if (next_)
            begin(std::move(next_), std::move(next_who_));
    });
}

// Let the client go: stop everything, then forget it, then @then.
void vhost_user_server::client_gone(std::function<void()> then) {
    ending_ = true;
    loop_.remove(client_.get());
    shutdown(client_.get(), SHUT_RDWR);
    stop_then(all_rings(), [this, then] {
        busy_ = true;
        host_.memory_unmapped(memory_, [this, then] {
            idle_then([this, then] {
                forget_client();
                then();
            });
        });
    });
}

void vhost_user_server::forget_client() {
    reset_rings();
    for (auto& r : rings_) {
        r->num = 0;
        r->vq.kick.reset();
        r->vq.call.reset();
        r->vq.err.reset();
        r->vq.inflight = {};
        r->vq.log = nullptr;
    }
    log_.reset();
    inflight_.reset();
    memory_.clear();
    backend_req_.reset();
    client_.reset();
    features_ = 0;
    protocol_features_ = 0;
    writeback_ = true;
    ending_ = false;
}

void vhost_user_server::close(std::function<void()> done) {
    if (listening_) {
        loop_.remove(listener_.get());
        listening_ = false;
        listener_.reset();
        unlink(path_.c_str());
    }
    next_.reset();
    if (busy_)
        when_idle_.push_back([this, done] { close(done); });
    else if (client_)
        client_gone([this, done] { loop_.post(done); });
    else
        loop_.post(done); // not from within: @done may destroy us
}

// The disk has no life but this object's.
void vhost_user_server::remove(bool, std::function<void(result<void>)> done) {
    close([done = std::move(done)] { done({}); });
}

void vhost_user_server::queue_broken(virtqueue& q) {
    const int error = vql_read_once(&q.ring_error);
    if (ending_ || !client_ || !error) // set up anew meanwhile
        return;
    say(log_level::warning,
        " queue " + std::to_string(q.index) + ": stopped: " + vql_ring_error_text(error));
    status_ |= VIRTIO_CONFIG_S_NEEDS_RESET;
    if (q.err) {
        const uint64_t one = 1;
        [[maybe_unused]] ssize_t n = ::write(q.err.get(), &one, sizeof(one));
    }
    tell_config_change();
    check_memory();
}

void vhost_user_server::check_memory() {
    if (client_ && (memory_.lost() || (log_ && log_->lost()) || (inflight_ && inflight_->lost()))) {
        if (busy_)
            return; // looked at again in a second
        drop("took away memory it shares with us");
    }
}

void vhost_user_server::geometry_changes(std::function<void()> change) {
    if (busy_) {
        when_idle_.push_back([this, change] { geometry_changes(change); });
        return;
    }
    stop_then(all_rings(), [this, change] {
        change();
        run_complete_rings();
        tell_config_change();
        read_messages();
    });
}

std::vector<frontend::ring_state*> vhost_user_server::all_rings() {
    std::vector<ring_state*> all;
    for (auto& r : rings_)
        all.push_back(r.get());
    return all;
}

void vhost_user_server::tell_config_change() {
    if (!backend_req_)
        return;
    header head{BACKEND_CONFIG_CHANGE_MSG, VERSION, 0};
    if (send(backend_req_.get(), &head, sizeof(head), MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof(head))
        say(log_level::warning, ": the client does not take configuration changes");
}

} // namespace vql
