// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/poller.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <future>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

namespace vql {

namespace {

// Requests under way on one poller, over all its queues. Only what is used is ever touched.
constexpr size_t pool_size = 4096;
// Pieces of one request in flight, so that one large request leaves room for others.
constexpr uint16_t max_parts = 16;
// Completions taken before queues are looked at again.
constexpr unsigned reap_batch = 64;

// What a completion's user_data points to, in its low bits.
enum tag : uint64_t {
    tag_engine = 0,
    tag_kick = 1,
    tag_mailbox = 2,
    tag_none = 3,
    tag_disarm = 4,
    tag_mask = 7,
};

const uint64_t one = 1; // what is written to an eventfd

uint64_t clock_ns() {
    timespec ts{};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return uint64_t(ts.tv_sec) * 1000000000u + uint64_t(ts.tv_nsec);
}

void add(std::atomic<uint64_t>& counter, uint64_t n) { // single writer
    counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}

void add(__u64& counter, uint64_t n) { // single writer, readers elsewhere
    vql_write_once(&counter, counter + n);
}

} // namespace

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
    wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!requests_ || !wake_)
        return errno_error(who, errno);
    done_.reserve(pool_size);

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
    uint64_t before = clock_ns();
    while (!stopping_) {
        bool work = mail_.load(std::memory_order_acquire) && run_mailbox();
        work |= reap();
        work |= retry_waiting();
        const uint64_t now = clock_ns();
        const size_t n = busy_.size();
        for (size_t i = 0; i < n; i++) {
            served_queue* q = busy_[(first_ + i) % n];
            work |= poll_queue(*q, now);
        }
        if (broke_) {
            std::erase_if(busy_, [](const served_queue* q) { return q->vq->ring_error != 0; });
            broke_ = false;
        }
        first_ = n ? (first_ + 1) % n : 0; // when requests run out, another one is first next time
        answer_done();
        if (io_uring_sq_ready(&ring_)) {
            uring_.flush();
            work = true;
        }
        if (work)
            add(stats_.busy_ns, now - before);
        else if (!options_.spin_always)
            rest_idle(now);
        before = now;
        if (busy_.empty() && !work) {
            sleep();
            before = clock_ns();
        }
    }
}

void poller::sleep() {
    if (mail_.load(std::memory_order_acquire))
        return;
    add(stats_.sleeps, 1);
    io_uring_submit_and_wait(&ring_, 1);
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
        default: break; // an interrupt that could not be written
        }
    }
    if (!n)
        return false;
    io_uring_cq_advance(&ring_, n);
    for (const auto& f : uring_.done()) {
        request& r = *f.owner;
        r.io.status = std::max(r.io.status, uint8_t(f.status));
        r.parts--;
        if (r.io.status != VQL_STATUS_OK && !r.waiting)
            r.left = 0;
        if (r.left && !r.waiting)
            submit(r);
        else if (!r.left && !r.parts)
            done_.push_back(&r);
    }
    uring_.clear_done();
    return true;
}

// Requests that found the engine full, first come first served.
bool poller::retry_waiting() {
    bool work = false;
    while (waiting_head_ && uring_.has_room()) {
        request& r = *waiting_head_;
        waiting_head_ = r.next;
        if (!waiting_head_)
            waiting_tail_ = nullptr;
        r.next = nullptr;
        r.waiting = false;
        submit(r);
        work = true;
    }
    return work;
}

void poller::wait_for_room(request& r) {
    r.waiting = true;
    r.next = nullptr;
    (waiting_tail_ ? waiting_tail_->next : waiting_head_) = &r;
    waiting_tail_ = &r;
}

request* poller::allocate() {
    if (request* r = free_) {
        free_ = r->next;
        return r;
    }
    if (fresh_ == pool_size)
        return nullptr;
    return reinterpret_cast<request*>(requests_.data()) + fresh_++;
}

void poller::release(request& r) {
    r.next = free_;
    free_ = &r;
}

// Fetch from one queue, at most a batch. Returns whether there was anything.
bool poller::poll_queue(served_queue& q, uint64_t now) {
    virtqueue& vq = *q.vq;
    uint32_t room = std::min<uint32_t>(VQL_BATCH, vq.ring.num - q.in_flight);
    bool work = false;

    // What an earlier daemon had taken and not answered comes first, in its order.
    while (room && q.resubmitted < vq.resubmit.size()) {
        if (!take(q, vq.resubmit[q.resubmitted], now))
            return work;
        q.resubmitted++;
        room--;
        work = true;
    }
    const int pending = vql_ring_pending(&vq.ring);
    if (pending < 0) {
        break_ring(q, -pending);
        return work;
    }
    for (uint32_t n = std::min(room, uint32_t(pending)); n; n--) {
        if (!take(q, vql_ring_peek(&vq.ring), now))
            break;
        vq.ring.next_avail++;
        work = true;
    }
    if (work)
        q.last_work_ns = now;
    return work;
}

// Fetch, validate and submit the chain at @head. False: there is no room, or the ring is broken.
bool poller::take(served_queue& q, uint16_t head, uint64_t now) {
    virtqueue& vq = *q.vq;
    request* r = allocate();
    if (!r)
        return false;
    int verdict = vql_chain_walk(&vq.ring, &vq.mem, head, &r->chain);
    if (VQL_LIKELY(!verdict))
        verdict = vql_blk_parse(&r->chain, &vq.disk, &r->io, &r->answer);
    if (VQL_UNLIKELY(verdict < 0)) {
        release(*r);
        break_ring(q, -verdict);
        return false;
    }
    if (vq.inflight)
        vq.inflight.take(head);
    q.in_flight++;
    r->queue = &q;
    r->start_ns = now;
    r->sector = r->io.sector;
    r->left = r->io.bytes;
    r->seg = r->io.seg;
    r->nsegs = r->io.nsegs;
    r->head = head;
    r->parts = 0;
    r->skip = 0;
    r->next = nullptr;
    r->waiting = false;
    if (verdict == VQL_BLK_ANSWERED) {
        done_.push_back(r);
        return true;
    }
    if (r->io.op == VQL_OP_FLUSH) {
        r->sector = 0; // index of the next target
        r->left = q.targets.size();
    }
    submit(*r);
    return true;
}

// The driver broke the rules in a way that cannot be answered: serve this ring no more.
void poller::break_ring(served_queue& q, int error) {
    q.vq->ring_error = error;
    q.now = served_queue::state::idle;
    broke_ = true;
    loop_.post(q.broken);
}

// Submit what is left of @r, as far as there is room. When all of it is done at once, or nothing of
// it is in flight after an error, it is put on done_.
void poller::submit(request& r) {
    served_queue& q = *r.queue;

    if (r.io.status != VQL_STATUS_OK)
        r.left = 0; // a part failed, and so has the request
    if (r.io.op == VQL_OP_FLUSH)
        return submit_flush(r);
    while (r.left) {
        if (r.parts == max_parts)
            return; // goes on when a part is done
        const vql_remap to = vql_remap_lookup(&q.table, vql_extent_table_at, q.table.chunk_shift,
                                              r.sector, r.left >> VQL_SECTOR_SHIFT);
        target* t =
            to.verdict == VQL_SERVE ? targets_[to.target].load(std::memory_order_acquire) : nullptr;
        if (VQL_UNLIKELY(!t)) {
            r.io.status = VQL_STATUS_IOERR;
            r.left = 0;
            break;
        }
        const uint64_t bytes = to.sectors << VQL_SECTOR_SHIFT;
        if (!submit_piece(r, *t, to.sector << VQL_SECTOR_SHIFT, bytes))
            return wait_for_room(r);
        advance(r, bytes);
    }
    if (!r.parts)
        done_.push_back(&r);
}

void poller::submit_flush(request& r) {
    while (r.left) {
        if (r.parts == max_parts)
            return;
        if (!submit_piece(r, *r.queue->targets[r.sector], 0, 0))
            return wait_for_room(r);
        r.sector++;
        r.left--;
    }
    if (!r.parts)
        done_.push_back(&r);
}

// False: the engine has no room now.
bool poller::submit_piece(request& r, target& t, uint64_t offset, uint64_t bytes) {
    piece p;
    p.owner = &r;
    p.where = &t;
    p.offset = offset;
    p.bytes = bytes;
    p.seg = r.seg;
    p.nsegs = r.nsegs;
    p.skip = r.skip;
    p.op = r.io.op;
    p.flags = r.io.flags;
    if (t.kind == target_kind::null) {
        r.io.status = std::max(r.io.status, uint8_t(null_engine::execute(p)));
        return true;
    }
    p.durable = r.queue->vq->durable;
    if (!memory_.empty() && r.nsegs && r.seg->bytes - r.skip >= bytes)
        p.buffer = buffer_of(static_cast<uint8_t*>(r.seg->base) + r.skip, bytes);
    if (!uring_.submit(p))
        return false;
    r.parts++;
    return true;
}

void poller::advance(request& r, uint64_t bytes) {
    r.sector += bytes >> VQL_SECTOR_SHIFT;
    r.left -= bytes;
    r.skip += bytes;
    while (r.nsegs && r.skip >= r.seg->bytes) {
        r.skip -= r.seg->bytes;
        r.seg++;
        r.nsegs--;
    }
}

int16_t poller::buffer_of(const void* base, uint64_t bytes) const {
    const auto at = reinterpret_cast<uintptr_t>(base);
    for (const pinned& p : memory_) {
        const uintptr_t offset = at - reinterpret_cast<uintptr_t>(p.base);
        if (offset < p.bytes)
            return p.bytes - offset >= bytes ? p.buffer : int16_t{-1};
    }
    return -1;
}

// Answer everything on done_, then publish each queue's answers with one store and one interrupt.
void poller::answer_done() {
    if (done_.empty())
        return;
    const uint64_t now = clock_ns();
    for (request* r : done_)
        answer(*r, now);
    add(stats_.requests, done_.size());
    done_.clear();
    for (served_queue* q : to_publish_)
        publish(*q);
    to_publish_.clear();
}

void poller::answer(request& r, uint64_t now) {
    served_queue& q = *r.queue;
    virtqueue& vq = *q.vq;
    const uint32_t len = vql_blk_finish(&r.io, &r.answer);

    if (VQL_UNLIKELY(vq.log != nullptr))
        log_writes(q, r);
    if (vq.inflight)
        vq.inflight.push(r.head);
    vql_ring_push(&vq.ring, r.head, len);
    if (!q.to_publish) {
        q.to_publish = true;
        to_publish_.push_back(&q);
    }
    q.in_flight--;
    q.last_work_ns = now;

    vql_op_stats& s = q.stats->op[r.io.op];
    const uint64_t ns = now - r.start_ns;
    add(s.count, 1);
    if (r.io.status == VQL_STATUS_OK)
        add(s.bytes, r.io.bytes);
    else
        add(s.errors, 1);
    add(s.total_ns, ns);
    if (ns > s.max_ns)
        vql_write_once(&s.max_ns, __u64{ns});
    add(s.latency[vql_latency_bucket(ns)], 1);
    add(s.size[vql_size_bucket(r.io.bytes)], 1);
    release(r);
}

// A live migration is under way: tell which guest pages this answer writes. The used entry's is
// told before the entry is visible, with the data's; a bit that is early costs a page sent twice.
void poller::log_writes(served_queue& q, request& r) {
    virtqueue& vq = *q.vq;
    const vql_ring& ring = vq.ring;
    uint64_t left = r.io.op == VQL_OP_READ || r.io.op == VQL_OP_GET_ID ? r.io.bytes : 0;

    for (const vql_seg* s = r.chain.seg + r.chain.nout; left; s++) {
        const uint64_t here = std::min<uint64_t>(s->bytes, left);
        vq.log->mark(vq.memory->guest_of(s->base), here);
        left -= here;
    }
    vq.log->mark(vq.memory->guest_of(r.answer.status), 1);
    if (vq.log_used)
        vq.log->mark(vq.used_log_guest + offsetof(vql_used, ring) +
                         (ring.next_used & (ring.num - 1u)) * sizeof(vql_used_elem),
                     sizeof(vql_used_elem));
}

void poller::publish(served_queue& q) {
    virtqueue& vq = *q.vq;

    q.to_publish = false;
    vql_ring_publish(&vq.ring);
    if (vq.inflight)
        vq.inflight.published(vq.ring.next_used);
    if (VQL_UNLIKELY(vq.log && vq.log_used))
        vq.log->mark(vq.used_log_guest, offsetof(vql_used, ring));
    if (vql_ring_should_interrupt(&vq.ring) && vq.call) {
        // Through the ring, since a client could make a plain write block; no completion unless it
        // fails (then the counter is full, and the guest has an interrupt coming anyway).
        io_uring_sqe* e = uring_.sqe();
        io_uring_prep_write(e, vq.call.get(), &one, sizeof(one), 0);
        e->flags |= IOSQE_CQE_SKIP_SUCCESS;
        io_uring_sqe_set_data64(e, tag_none);
    }
    if (q.now == served_queue::state::draining)
        check_drained(q);
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
        if (now - q->last_work_ns < options_.spin_ns || !vq.kick)
            return false;
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
    q.in_flight = 0;
    q.resubmitted = 0;
    q.last_work_ns = clock_ns();
    q.kick_armed = false;
    q.disarming = false;
    queues_++;
    busy_.reserve(queues_);
    to_publish_.reserve(queues_);
    disarm(*q.vq);
    busy_.push_back(&q);
    if (q.vq->kick)
        arm_kick(q);
}

void poller::remove_queue(served_queue& q, std::function<void()> drained) {
    std::erase(busy_, &q);
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
    if (q.in_flight || q.to_publish || q.kick_armed || q.disarming)
        return;
    q.now = served_queue::state::detached;
    queues_--;
    if (!q.vq->ring_error)
        arm(*q.vq); // who serves it next may wait for a kick
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

} // namespace vql
