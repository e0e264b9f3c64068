// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/poller.h"

#include "daemon/probes.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <future>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <utility>

namespace vql {

namespace {

// Completions taken before queues are looked at again.
constexpr unsigned reap_batch = 64;

// What a completion's user_data points to, in its low bits.
enum tag : uint64_t {
    tag_engine = 0,
    tag_kick = 1,
    tag_mailbox = 2,
    tag_none = 3,
    tag_disarm = 4,
    tag_lane = 5,
    tag_unwatch = 6,
    tag_mask = 7,
};

// A command not answered for so long has its controller's attention asked for.
constexpr uint64_t overdue_ns = 30ull * 1000 * 1000 * 1000;
constexpr uint64_t second_ns = 1000 * 1000 * 1000;

const uint64_t one = 1; // what is written to an eventfd

} // namespace

uint64_t poller::clock_ns() {
    timespec ts{};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return uint64_t(ts.tv_sec) * 1000000000u + uint64_t(ts.tv_nsec);
}

poller::poller(const options& o, event_loop& loop, const target_table& targets)
    : options_(o), loop_(loop), targets_(targets) {}

result<std::unique_ptr<poller>> poller::start(const options& o, event_loop& loop,
                                              const target_table& targets) {
    auto p = std::unique_ptr<poller>(new poller(o, loop, targets));
    std::promise<result<void>> ready;
    auto outcome = ready.get_future();
    p->thread_ = std::thread([raw = p.get(), &ready] {
        auto ok = raw->set_up();
        const bool go = bool(ok);
        ready.set_value(std::move(ok));
        if (go)
            raw->run();
    });
    if (auto ok = outcome.get(); !ok)
        return ok.failure();
    return p;
}

result<std::unique_ptr<poller>> poller::open(const options& o, event_loop& loop,
                                             const target_table& targets) {
    auto p = std::unique_ptr<poller>(new poller(o, loop, targets));
    if (auto ok = p->set_up(); !ok)
        return ok.failure();
    return p;
}

poller::~poller() {
    if (thread_.joinable()) {
        if (wake_)
            post([this] { stopping_ = true; });
        thread_.join();
    }
    if (ring_open_)
        io_uring_queue_exit(&ring_);
}

result<void> poller::set_up() {
    const std::string who = "poller on CPU " + std::to_string(options_.cpu);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(size_t(options_.cpu), &set);
    if (const int err = pthread_setaffinity_np(pthread_self(), sizeof(set), &set))
        return error{who + ": " + std::strerror(err) + " (is the CPU online, and allowed to us?)"};
    pthread_setname_np(pthread_self(), ("vqlane-" + std::to_string(options_.cpu)).c_str());

    io_uring_params params{};
    params.flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                   IORING_SETUP_TASKRUN_FLAG;
    params.cq_entries = 8192;
    if (const int err = io_uring_queue_init_params(1024, &ring_, &params))
        return error{who + ": io_uring: " + std::strerror(-err) +
                     " (Linux 6.1 or later is needed, and sysctl kernel.io_uring_disabled = 0)"};
    ring_open_ = true;
    if (auto ok = uring_.open(ring_); !ok)
        return error{who + ": " + ok.failure().text};

    requests_ =
        mapping::map(-1, pool_size * sizeof(request), MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    large_ = mapping::map(-1, pool_size * VQL_MOST_SEGS * sizeof(vql_seg),
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!requests_ || !large_ || !wake_)
        return errno_error(who, errno);
    done_ = std::make_unique<request*[]>(pool_size);
    waiting_.resize(VQL_MAX_TARGETS + VQL_MAX_CONTROLLERS);
    crowded_.reserve(waiting_.size());

    io_uring_sqe* e = uring_.sqe();
    io_uring_prep_poll_multishot(e, wake_.get(), POLLIN);
    io_uring_sqe_set_data64(e, tag_mailbox);
    uring_.flush();
    return {};
}

void poller::post(std::function<void()> fn) {
    {
        std::lock_guard lock(mutex_);
        mailbox_.push_back(std::move(fn));
    }
    // Release: pairs with the acquire in run(). The write wakes a sleeper; a poller on its way to
    // sleep finds the eventfd readable, since its poll is armed all the time.
    mail_.store(true, std::memory_order_release);
    [[maybe_unused]] ssize_t n = ::write(wake_.get(), &one, sizeof(one));
}

bool poller::run_mailbox() {
    mail_.store(false, std::memory_order_relaxed);
    std::vector<std::function<void()>> now;
    {
        std::lock_guard lock(mutex_);
        now.swap(mailbox_);
    }
    for (auto& fn : now)
        fn();
    return !now.empty();
}

void poller::run() {
    last_round_ns_ = clock_ns();
    while (!stopping_) {
        if (round() || !busy_.empty())
            continue;
        sleep();
        last_round_ns_ = clock_ns();
    }
}

bool poller::round() {
    tracing_ = traced();
    bool work = mail_.load(std::memory_order_acquire) && run_mailbox();
    work |= reap();
    work |= reap_nvme();
    work |= retry_waiting();
    const uint64_t now = clock_ns();
    const size_t n = busy_.size();
    for (size_t i = 0; i < n; i++) {
        served_queue* q = busy_[(first_ + i) % n];
        work |= poll_queue(*q, now);
    }
    if (left_round_)
        leave_round();
    first_ = n ? (first_ + 1) % n : 0; // when requests run out, another one is first next time
    for (nvme_lane* lane : lanes_) {
        if (VQL_UNLIKELY(lane->engine.retry_at() <= now))
            lane->engine.retry(now);
        lane->engine.flush(); // one doorbell for the whole round
    }
    answer_done();
    if (io_uring_sq_ready(&ring_)) {
        uring_.flush();
        work = true;
    }
    if (work)
        add(stats_.busy_ns, now - last_round_ns_);
    else if (!options_.spin_always)
        rest_idle(now);
    if (VQL_UNLIKELY(now - overdue_checked_ns_ > second_ns))
        check_overdue(now);
    last_round_ns_ = now;
    return work;
}

// Queues that broke, or have no more to drain, leave the round, and only then are told to be
// drained: from that moment on they are not ours to touch.
void poller::leave_round() {
    left_round_ = false;
    for (size_t i = 0; i < busy_.size();) {
        served_queue& q = *busy_[i];
        const bool draining = q.now == served_queue::state::draining;
        if (!q.vq->ring_error && !(draining && q.all_resubmitted())) {
            i++;
            continue;
        }
        busy_[i] = busy_.back();
        busy_.pop_back();
        if (draining)
            check_drained(q);
    }
}

// Until a kick, a completion or the mailbox. A controller's interrupt is armed only here: while the
// poller runs it looks at the queues itself.
void poller::sleep() {
    if (mail_.load(std::memory_order_acquire))
        return;
    bool in_flight = false;
    uint64_t until = last_round_ns_ + second_ns; // to find what is overdue
    for (nvme_lane* lane : lanes_) {
        if (!lane->engine.in_flight())
            lane->stuck.store(false, std::memory_order_relaxed); // nobody looks before we wake
        if (!lane->engine.in_flight() || lane->told_lost)
            continue;
        if (!lane->has_interrupt)
            return; // nothing would wake us: go on looking
        lane->arm();
        in_flight = true;
        until = std::min(until, lane->engine.retry_at());
        if (lane->engine.pending()) // it came before the interrupt was armed
            return;
    }
    add(stats_.sleeps, 1);
    if (!in_flight) {
        io_uring_submit_and_wait(&ring_, 1);
        return;
    }
    const auto wait_ns = int64_t(until - std::min(until, last_round_ns_));
    __kernel_timespec limit{.tv_sec = wait_ns / int64_t(second_ns),
                            .tv_nsec = wait_ns % int64_t(second_ns)};
    io_uring_cqe* first = nullptr;
    io_uring_submit_and_wait_timeout(&ring_, &first, 1, &limit, nullptr);
}

// Take completions. Returns whether there were any.
bool poller::reap() {
    std::array<io_uring_cqe*, reap_batch> cqes; // NOLINT: filled by the call
    const unsigned n = io_uring_peek_batch_cqe(&ring_, cqes.data(), reap_batch);
    for (unsigned i = 0; i < n; i++) {
        const io_uring_cqe& c = *cqes[i];
        const uint64_t at = c.user_data & ~uint64_t{tag_mask};
        switch (c.user_data & tag_mask) {
        case tag_engine:
            if (at)
                uring_.complete(at, c.res);
            break;
        case tag_kick: {
            auto& q = *reinterpret_cast<served_queue*>(at);
            if (!(c.flags & IORING_CQE_F_MORE))
                q.kick_armed = false;
            if (q.now == served_queue::state::draining)
                check_drained(q);
            else
                wake(q);
            break;
        }
        case tag_disarm: {
            auto& q = *reinterpret_cast<served_queue*>(at);
            q.disarming = false;
            // A kick was being delivered just then: the poll goes on, so take it down again.
            if (c.res == -EALREADY && q.kick_armed)
                disarm_kick(q);
            check_drained(q);
            break;
        }
        case tag_mailbox: {
            uint64_t count = 0;
            [[maybe_unused]] ssize_t r = ::read(wake_.get(), &count, sizeof(count));
            if (!(c.flags & IORING_CQE_F_MORE)) {
                io_uring_sqe* e = uring_.sqe();
                io_uring_prep_poll_multishot(e, wake_.get(), POLLIN);
                io_uring_sqe_set_data64(e, tag_mailbox);
            }
            break;
        }
        case tag_lane: { // an interrupt: the next round looks at the queue
            auto& lane = *reinterpret_cast<nvme_lane*>(at);
            if (!(c.flags & IORING_CQE_F_MORE)) {
                lane.watched = false;
                check_unwatched(lane);
            }
            break;
        }
        case tag_unwatch: {
            auto& lane = *reinterpret_cast<nvme_lane*>(at);
            lane.unwatching = false;
            if (c.res == -EALREADY && lane.watched) // it was firing just then, and goes on
                unwatch(lane);
            check_unwatched(lane);
            break;
        }
        default: break; // an interrupt that could not be written
        }
    }
    if (!n)
        return false;
    io_uring_cq_advance(&ring_, n);
    for (const auto& f : uring_.done())
        finished(*f.owner, f.status);
    uring_.clear_done();
    return true;
}

// Take what the controllers have completed.
bool poller::reap_nvme() {
    bool work = false;
    for (nvme_lane* lane : lanes_) {
        if (!lane->engine.in_flight() && crowded_.empty())
            continue;
        lane->engine.reap();
        if (!lane->engine.done().empty()) {
            work = true;
            // It may grow meanwhile: what follows a part of a request may be done as it is
            // submitted.
            for (size_t i = 0; i < lane->engine.done().size(); i++) {
                const auto f = lane->engine.done()[i];
                finished(*f.owner, f.status);
            }
            lane->engine.clear_done();
        }
        if (VQL_UNLIKELY(lane->engine.lost()) && !lane->told_lost) {
            lane->told_lost = true;
            loop_.post(lane->lost);
        }
    }
    return work;
}

// Through the ring, since a client could make a plain write block; no completion unless it fails
// (then the counter is full, and the guest has an interrupt coming anyway). Without RWF_NOWAIT the
// kernel would keep a write to a full counter until there is room: a client that never reads could
// have it keep any number of them.
void poller::interrupt(virtqueue& vq) {
    io_uring_sqe* e = uring_.sqe();
    io_uring_prep_write(e, vq.call.get(), &one, sizeof(one), 0);
    e->rw_flags = RWF_NOWAIT;
    e->flags |= IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(e, tag_none);
}

// All that was signalled by the old one has reached the kernel: a round ends with its submission.
void poller::set_call(virtqueue& vq, unique_fd call) {
    vq.call = std::move(call);
    if (vq.call)
        interrupt(vq);
}

// Ask the driver for a kick. True: there is work already.
bool poller::arm(virtqueue& vq) {
    const bool more = vql_ring_arm(&vq.ring);
    if (VQL_UNLIKELY(vq.log && vq.log_used)) { // flags, or the event index behind the entries
        const uint64_t at = vq.ring.event_idx ? vql_used_bytes(vq.ring.num) - sizeof(__u16) : 0;
        vq.log->mark(vq.used_log_guest + at, sizeof(__u16));
    }
    return more;
}

void poller::disarm(virtqueue& vq) {
    vql_ring_disarm(&vq.ring);
    if (VQL_UNLIKELY(vq.log && vq.log_used) && !vq.ring.event_idx)
        vq.log->mark(vq.used_log_guest, sizeof(__u16));
}

// Let queues without work for a while leave the round.
void poller::rest_idle(uint64_t now) {
    std::erase_if(busy_, [&](served_queue* q) {
        virtqueue& vq = *q->vq;
        if (now - q->last_work_ns < options_.spin_ns || !vq.kick || !q->all_resubmitted())
            return false;
        if (VQL_UNLIKELY(q->starved)) { // a kick could not have it served
            q->now = served_queue::state::idle;
            // It may be there already: a kick wakes it all the same, and it comes back.
            if (std::find(starved_.begin(), starved_.end(), q) == starved_.end())
                starved_.push_back(q);
            return true;
        }
        if (arm(vq)) {
            disarm(vq);
            return false;
        }
        q->now = served_queue::state::idle;
        if (!q->kick_armed)
            arm_kick(*q);
        return true;
    });
}

void poller::wake_starved() {
    for (served_queue* q : starved_)
        wake(*q);
    starved_.clear();
}

void poller::wake(served_queue& q) {
    if (q.now != served_queue::state::idle || q.vq->ring_error)
        return;
    q.now = served_queue::state::busy;
    q.last_work_ns = clock_ns();
    disarm(*q.vq);
    busy_.push_back(&q);
    add(stats_.wakeups, 1);
}

// The eventfd is never read: its wake-ups alone are what counts, and each gives one completion.
void poller::arm_kick(served_queue& q) {
    io_uring_sqe* e = uring_.sqe();
    io_uring_prep_poll_multishot(e, q.vq->kick.get(), POLLIN);
    io_uring_sqe_set_data64(e, reinterpret_cast<uintptr_t>(&q) | tag_kick);
    q.kick_armed = true;
}

void poller::add_queue(served_queue& q) {
    q.now = served_queue::state::busy;
    q.to_publish = false;
    q.starved = false;
    q.in_flight = 0;
    q.resubmitted = 0;
    q.last_work_ns = clock_ns();
    q.kick_armed = false;
    q.disarming = false;
    queues_++;
    busy_.reserve(queues_);
    to_publish_.reserve(queues_);
    starved_.reserve(queues_);
    if (VQL_UNLIKELY(traced()))
        trace_lane(q, vql_lane_kind{}, VQL_LANE_POLL, "taken by a poller");
    disarm(*q.vq);
    busy_.push_back(&q);
    if (q.vq->kick)
        arm_kick(q);
    // What is in the used ring may never have been signalled: whoever served the queue before may
    // have died between its last index and the interrupt, or interrupted by another descriptor that
    // nobody looks at any more. The driver may be waiting for just that one, and ask for no other.
    if (q.vq->call)
        interrupt(*q.vq);
}

void poller::remove_queue(served_queue& q, std::function<void()> drained) {
    // What an earlier daemon left is done first: who serves the queue next does not know of it.
    if (q.all_resubmitted())
        std::erase(busy_, &q);
    std::erase(starved_, &q);
    q.now = served_queue::state::draining;
    q.drained = std::move(drained);
    if (q.kick_armed)
        disarm_kick(q);
    check_drained(q);
}

void poller::disarm_kick(served_queue& q) {
    io_uring_sqe* e = uring_.sqe();
    io_uring_prep_poll_remove(e, reinterpret_cast<uintptr_t>(&q) | tag_kick);
    io_uring_sqe_set_data64(e, reinterpret_cast<uintptr_t>(&q) | tag_disarm);
    q.disarming = true;
}

void poller::check_drained(served_queue& q) {
    if (q.in_flight || q.to_publish || q.kick_armed || q.disarming || !q.all_resubmitted())
        return;
    q.now = served_queue::state::detached;
    queues_--;
    // An interrupt that is prepared and not submitted names its descriptor by number only: the
    // control thread may close that one, and open another by the same number.
    uring_.flush();
    if (!q.vq->ring_error)
        arm(*q.vq); // who serves it next may wait for a kick
    if (VQL_UNLIKELY(traced()))
        trace_lane(q, VQL_LANE_POLL, vql_lane_kind{}, "let go by its poller");
    loop_.post(std::move(q.drained));
}

// Memory in parts of at most 1 GiB, the most that one registered buffer may have.
void poller::add_memory(uint8_t* base, uint64_t bytes) {
    constexpr uint64_t part = 1ull << 30;
    for (uint64_t at = 0; at < bytes; at += part) {
        const uint64_t here = std::min(part, bytes - at);
        const int16_t buffer = uring_.add_buffer(base + at, here);
        if (buffer < 0)
            return; // the rest goes without
        memory_.push_back({base + at, here, buffer, base});
    }
}

void poller::remove_memory(uint8_t* base) {
    std::erase_if(memory_, [&](const pinned& p) {
        if (p.region != base)
            return false;
        uring_.remove_buffer(p.buffer);
        return true;
    });
}

void poller::check_overdue(uint64_t now) {
    overdue_checked_ns_ = now;
    for (nvme_lane* lane : lanes_) {
        auto cids = lane->engine.overdue(now, overdue_ns);
        lane->stuck.store(!cids.empty() && !lane->told_lost, std::memory_order_relaxed);
        if (!cids.empty())
            loop_.post(
                [lane, cids = std::move(cids)]() mutable { lane->overdue(std::move(cids)); });
    }
}

void poller::add_nvme(nvme_lane& lane, uint32_t index) {
    lane.index = index;
    nvme_[index] = &lane;
    lanes_.push_back(&lane);
    watch(lane);
}

void poller::watch(nvme_lane& lane) {
    if (!lane.has_interrupt)
        return;
    io_uring_sqe* e = uring_.sqe();
    io_uring_prep_poll_multishot(e, lane.fd, POLLIN);
    io_uring_sqe_set_data64(e, reinterpret_cast<uintptr_t>(&lane) | tag_lane);
    lane.watched = true;
}

void poller::unwatch(nvme_lane& lane) {
    io_uring_sqe* e = uring_.sqe();
    io_uring_prep_poll_remove(e, reinterpret_cast<uintptr_t>(&lane) | tag_lane);
    io_uring_sqe_set_data64(e, reinterpret_cast<uintptr_t>(&lane) | tag_unwatch);
    lane.unwatching = true;
}

// The poll on the old descriptor is gone, with its reference: what waited for that goes on.
void poller::check_unwatched(nvme_lane& lane) {
    if (lane.watched || lane.unwatching)
        return;
    if (lane.removed)
        return loop_.post(std::exchange(lane.removed, nullptr));
    if (std::exchange(lane.rewatch, false))
        watch(lane);
}

void poller::remove_nvme(nvme_lane& lane, std::function<void()> removed) {
    nvme_[lane.index] = nullptr;
    std::erase(lanes_, &lane);
    lane.removed = std::move(removed);
    if (lane.watched && !lane.unwatching)
        unwatch(lane);
    check_unwatched(lane);
}

void poller::replace_nvme(nvme_lane& lane, const nvme_queue& queue, int fd, bool has_interrupt) {
    lane.fd = fd;
    lane.has_interrupt = has_interrupt;
    lane.told_lost = false;
    lane.engine.replace(queue);
    room_made_ = true;
    lane.rewatch = true;
    if (lane.watched && !lane.unwatching)
        unwatch(lane);
    check_unwatched(lane);
}

void poller::fail_nvme(nvme_lane& lane) {
    lane.dead = true;
    for (const piece& p : lane.engine.take_unfinished())
        finished(*p.owner, VQL_STATUS_IOERR);
    room_made_ = true; // who waited for room learns it as well
}

} // namespace vql
