// SPDX-License-Identifier: GPL-2.0-only
// A request's way through the poller: fetched from its ring, validated, remapped, submitted, and
// answered. The rounds that drive this, and sleeping and waking, are in poller.cc.
#include "daemon/poller.h"

#include <algorithm>
#include <cerrno>

namespace vql {

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

// What every engine wants to know.
[[gnu::always_inline]] static inline void fill(piece& p, request& r, target& t, uint64_t offset,
                                               uint64_t bytes) {
    p.owner = &r;
    p.where = &t;
    p.offset = offset;
    p.bytes = bytes;
    p.seg = r.seg;
    p.nsegs = r.nsegs;
    p.skip = r.skip;
    p.op = r.io.op;
    p.flags = r.io.flags;
    p.durable = r.queue->vq->durable;
    p.bounced = &r.queue->stats->op[r.io.op].bounced;
}

[[gnu::always_inline]] inline poller::taken
poller::submit_to_nvme(request& r, target& t, uint64_t offset, uint64_t bytes) {
    nvme_lane* const lane = nvme_[t.controller];
    const dma_view* const dma = r.queue->dma[t.controller];
    if (VQL_UNLIKELY(!lane || lane->dead || (r.nsegs && !dma))) {
        r.io.status = VQL_STATUS_IOERR;
        return taken::done;
    }
    piece* const p = lane->engine.room();
    if (!p)
        return taken::no_room;
    fill(*p, r, t, offset, bytes);
    p->dma = dma;
    lane->engine.submit();
    return taken::in_flight;
}

poller::taken poller::submit_to_uring(request& r, target& t, uint64_t offset, uint64_t bytes) {
    piece p;
    fill(p, r, t, offset, bytes);
    p.unpinnable = !r.queue->vq->memory->pinnable();
    if (!memory_.empty() && r.nsegs && r.seg->bytes - r.skip >= bytes)
        p.buffer = buffer_of(static_cast<uint8_t*>(r.seg->base) + r.skip, bytes);
    return uring_.submit(p) ? taken::in_flight : taken::no_room;
}

[[gnu::always_inline]] inline poller::taken poller::submit_piece(request& r, target& t,
                                                                 uint64_t offset, uint64_t bytes) {
    if (t.kind == target_kind::null) {
        r.io.status = std::max(r.io.status, uint8_t(null_engine::execute()));
        if (VQL_UNLIKELY(tracing_)) {
            trace_submit(r, t);
            trace_part_done(r, VQL_STATUS_OK);
        }
        return taken::done;
    }
    const taken how = t.kind == target_kind::nvme ? submit_to_nvme(r, t, offset, bytes)
                                                  : submit_to_uring(r, t, offset, bytes);
    if (VQL_UNLIKELY(how != taken::in_flight))
        return how;
    if (VQL_UNLIKELY(tracing_))
        trace_submit(r, t);
    r.parts++;
    return how;
}

// The next piece of @r has no place in the table: what does the disk's policy say, if it has one?
[[gnu::noinline]] vql_remap poller::not_in_table(request& r) {
    const served_queue& q = *r.queue;
    const uint64_t sectors = r.left >> VQL_SECTOR_SHIFT;
    if (!q.vq->policy)
        return {VQL_REFUSE, 0, 0, 0};
    const policy_answer says = q.vq->policy(vql_op(r.io.op), r.sector, sectors);
    if (says.to.verdict == VQL_REFUSE)
        r.io.status = says.status;
    if (says.to.verdict != VQL_USER)
        return says.to;
    return vql_remap_lookup(&q.extents, vql_extent_table_at, vql_extent_table_run,
                            q.extents.chunk_shift, r.sector, sectors);
}

// Submit what is left of @r, as far as there is room. When all of it is done at once, or nothing of
// it is in flight after an error, it is put on done_.
[[gnu::always_inline]] inline void poller::submit(request& r) {
    served_queue& q = *r.queue;

    if (r.io.status != VQL_STATUS_OK)
        r.left = 0; // a part failed, and so has the request
    if (VQL_UNLIKELY(r.io.op == VQL_OP_FLUSH))
        return submit_flush(r);
    while (r.left) {
        if (r.parts == max_parts)
            return; // goes on when a part is done
        vql_remap to = vql_remap_lookup(&q.table, vql_extent_table_at, vql_extent_table_run,
                                        q.table.chunk_shift, r.sector, r.left >> VQL_SECTOR_SHIFT);
        target* t = target_of(to);
        if (VQL_UNLIKELY(!t)) {
            to = not_in_table(r);
            t = target_of(to);
        }
        if (VQL_UNLIKELY(tracing_))
            trace_remap(r, to);
        if (VQL_UNLIKELY(!t)) {
            if (r.io.status == VQL_STATUS_OK)
                r.io.status = VQL_STATUS_IOERR;
            r.left = 0;
            break;
        }
        const uint64_t bytes = to.sectors << VQL_SECTOR_SHIFT;
        if (submit_piece(r, *t, to.sector << VQL_SECTOR_SHIFT, bytes) == taken::no_room)
            return wait_for_room(r, *t);
        if (VQL_LIKELY(bytes == r.left)) {
            r.left = 0;
            break;
        }
        advance(r, bytes);
    }
    if (!r.parts)
        done(r);
}

void poller::submit_rest(request& r) {
    submit(r);
}

namespace {

// Where requests for @t wait: targets of one io_uring engine have their own parts of its room, and
// those of one controller have it together.
uint32_t place_of(const target& t) {
    return t.kind == target_kind::nvme ? VQL_MAX_TARGETS + t.controller : t.id;
}

} // namespace

bool poller::has_room(uint32_t place) const {
    if (place < VQL_MAX_TARGETS)
        return uring_.has_room(place);
    nvme_lane* const lane = nvme_[place - VQL_MAX_TARGETS];
    return !lane || lane->dead || lane->engine.room(); // without a lane they fail at once
}

// Each place's own, so that those who wait for storage that hangs cost nobody else a look at them.
// One that finds no room again, here or elsewhere, goes to the end there.
bool poller::retry_waiting() {
    if (!room_made_)
        return false;
    room_made_ = false;
    bool work = false;
    for (size_t i = 0; i < crowded_.size();) { // it may grow meanwhile
        const uint32_t place = crowded_[i];
        wait_list& list = waiting_[place];
        for (request* const last = list.tail; list.head && has_room(place);) {
            request* const r = list.head;
            list.head = r->next;
            if (!list.head)
                list.tail = nullptr;
            r->waiting = false;
            submit_rest(*r);
            work |= !r->waiting;
            if (r == last)
                break;
        }
        if (list.head) {
            i++;
            continue;
        }
        crowded_[i] = crowded_.back();
        crowded_.pop_back();
    }
    return work;
}

void poller::wait_for_room(request& r, const target& t) {
    const uint32_t place = place_of(t);
    wait_list& list = waiting_[place];
    r.waiting = true;
    r.next = nullptr;
    if (!list.head && std::find(crowded_.begin(), crowded_.end(), place) == crowded_.end())
        crowded_.push_back(place);
    (list.tail ? list.tail->next : list.head) = &r;
    list.tail = &r;
}

// Half of the requests are anybody's, and when they are in use each queue has its part of the other
// half: a disk whose storage does not answer keeps what it has, and the others go on with less. How
// many more @q may have under way then.
uint32_t poller::left_of_share(const served_queue& q) const {
    const auto share =
        uint32_t(std::max<size_t>(1, (pool_size / 2 - VQL_BATCH) / std::max<size_t>(1, queues_)));
    return share - std::min(share, uint32_t(q.in_flight));
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

// Fetch, validate and submit the chain at @head. False: there is no room, or the ring is broken.
[[gnu::always_inline]] inline bool poller::take(served_queue& q, uint16_t head, uint64_t now) {
    virtqueue& vq = *q.vq;
    request* r = allocate();
    if (!r)
        return false;
    int verdict = VQL_BLK_SUBMIT;
    if (!vql_blk_take_plain(&vq.ring, &vq.mem, head, &vq.disk, &r->chain, &r->io, &r->answer)) {
        verdict = parse(vq, head, *r);
        if (VQL_UNLIKELY(verdict < 0)) {
            release(*r);
            break_ring(q, -verdict);
            return false;
        }
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
    r->waiting = false;
    if (VQL_UNLIKELY(tracing_))
        trace_fetch(*r);
    if (verdict == VQL_BLK_ANSWERED) {
        done(*r);
        return true;
    }
    if (VQL_UNLIKELY(r->io.op == VQL_OP_FLUSH)) {
        r->sector = 0; // index of the next target
        r->left = q.targets.size();
    }
    submit(*r);
    return true;
}

// What an earlier daemon had taken and not answered comes first, in its order: at most @most of it.
uint32_t poller::take_left_over(served_queue& q, uint32_t most, uint64_t now) {
    uint32_t n = 0;
    for (; n < most && !q.all_resubmitted() && take(q, q.vq->resubmit[q.resubmitted], now); n++)
        q.resubmitted++;
    in_use_ += n;
    return n;
}

// Any chain: a verdict of vql_blk_parse(), or -enum vql_ring_error.
int poller::parse(virtqueue& vq, uint16_t head, request& r) {
    const int err = vql_chain_walk(&vq.ring, &vq.mem, head, &r.chain);
    if (VQL_UNLIKELY(err))
        return err;
    if (VQL_UNLIKELY(r.chain.truncated))
        return parse_large(vq, head, r);
    return vql_blk_parse(&r.chain, &vq.disk, &r.io, &r.answer);
}

// … with more segments than @r itself holds. All of it is read anew, for the guest may have changed
// it since: of the walk that found this nothing is used.
[[gnu::noinline]] int poller::parse_large(virtqueue& vq, uint16_t head, request& r) {
    vql_seg* const seg = large_segments(r);
    const int err = vql_chain_walk_into(&vq.ring, &vq.mem, head, &r.chain, seg, VQL_MOST_SEGS);
    return err ? err : vql_blk_parse_segs(&r.chain, seg, &vq.disk, &r.io, &r.answer);
}

// Fetch from one queue, at most a batch. Returns whether there was anything.
bool poller::poll_queue(served_queue& q, uint64_t now) {
    virtqueue& vq = *q.vq;
    uint32_t room = std::min<uint32_t>(VQL_BATCH, vq.ring.num - q.in_flight);
    bool work = false;

    q.starved = false;
    if (VQL_UNLIKELY(in_use_ > pool_size / 2)) {
        room = std::min(room, left_of_share(q));
        q.starved = room == 0;
    }
    if (VQL_UNLIKELY(q.resubmitted < vq.resubmit.size())) {
        const uint32_t n = take_left_over(q, room, now);
        if (!q.all_resubmitted())
            return n;
        room -= n;
        work = n;
    }
    if (VQL_UNLIKELY(q.now == served_queue::state::draining)) {
        left_round_ |= q.all_resubmitted();
        return work;
    }
    if (VQL_UNLIKELY(vq.limit != virtqueue::no_limit)) {
        room = std::min(room, vq.limit);
        if (!vq.limit && !q.told_through && q.all_resubmitted()) {
            q.told_through = true;
            loop_.post(q.through);
        }
    }
    const int pending = vql_ring_pending(&vq.ring);
    if (pending < 0) {
        break_ring(q, -pending);
        return work;
    }
    const uint32_t n = std::min(room, uint32_t(pending));
    if (!n)
        return work;
    vql_ring_prefetch(&vq.ring, &vq.mem, n);
    const uint16_t first = vq.ring.next_avail;
    for (uint32_t i = 0; i < n && take(q, vql_ring_peek(&vq.ring), now); i++)
        vq.ring.next_avail++;
    const auto fetched = uint16_t(vq.ring.next_avail - first);
    in_use_ += fetched;
    if (VQL_UNLIKELY(vq.limit != virtqueue::no_limit))
        vq.limit -= fetched;
    work |= fetched != 0;
    if (work)
        q.last_work_ns = now;
    return work;
}

// The driver broke the rules in a way that cannot be answered: serve this ring no more.
void poller::break_ring(served_queue& q, int error) {
    vql_write_once(&q.vq->ring_error, error);
    if (q.now != served_queue::state::draining)
        q.now = served_queue::state::idle;
    left_round_ = true;
    if (VQL_UNLIKELY(tracing_))
        trace_error(q, error, vql_ring_error_text(error));
    loop_.post(q.broken);
}

void poller::submit_flush(request& r) {
    while (r.left) {
        if (r.parts == max_parts)
            return;
        target& t = *r.queue->targets[r.sector];
        if (submit_piece(r, t, 0, 0) == taken::no_room)
            return wait_for_room(r, t);
        r.sector++;
        r.left--;
    }
    if (!r.parts)
        done(r);
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

// Requests that count alike: one update for all of them.
struct poller::answer_run {
    served_queue* queue;
    uint64_t start_ns;
    uint64_t bytes;
    uint64_t count;
    uint8_t op;
    uint8_t status;

    bool same_as(const request& r) const {
        return r.queue == queue && r.start_ns == start_ns && r.io.bytes == bytes && r.io.op == op &&
               r.io.status == status;
    }
    void add_up(uint64_t now) const {
        if (!count)
            return;
        vql_op_stats& s = queue->stats->op[op];
        const uint64_t ns = now - start_ns;
        add(s.count, count);
        if (status == VQL_STATUS_OK)
            add(s.bytes, count * bytes);
        else
            add(s.errors, count);
        add(s.total_ns, count * ns);
        if (ns > s.max_ns)
            vql_write_once(&s.max_ns, __u64{ns});
        add(s.latency[vql_latency_bucket(ns)], count);
        add(s.size[vql_size_bucket(bytes)], count);
    }
};

[[gnu::always_inline]] inline void poller::answer(request& r) {
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
    if (VQL_UNLIKELY(tracing_))
        trace_answer(r);
    release(r);
}

// Answer everything that is done, then publish each queue's answers with one store and one
// interrupt.
void poller::answer_done() {
    if (!done_count_)
        return;
    const uint64_t now = clock_ns();
    answer_run run{};
    for (size_t i = 0; i < done_count_; i++) {
        request& r = *done_[i];
        if (!run.same_as(r)) {
            run.add_up(now);
            run = {r.queue, r.start_ns, r.io.bytes, 0, r.io.op, r.io.status};
        }
        run.count++;
        answer(r);
    }
    run.add_up(now);
    add(stats_.requests, done_count_);
    for (served_queue* q : to_publish_) {
        q->last_work_ns = now;
        publish(*q);
    }
    to_publish_.clear();
    if (VQL_UNLIKELY(tracing_))
        trace_complete();
    in_use_ -= done_count_;
    if (VQL_UNLIKELY(!starved_.empty()))
        wake_starved();
    done_count_ = 0;
}

// A live migration is under way: tell which guest pages this answer writes. The used entry's is
// told before the entry is visible, with the data's; a bit that is early costs a page sent twice.
void poller::log_writes(served_queue& q, request& r) {
    virtqueue& vq = *q.vq;
    const vql_ring& ring = vq.ring;
    uint64_t left = r.io.op == VQL_OP_READ || r.io.op == VQL_OP_GET_ID ? r.io.bytes : 0;

    for (const vql_seg* s = r.io.seg; left; s++) {
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
    add(vq.answered, uint16_t(vq.ring.next_used - vq.answered_to));
    vq.answered_to = vq.ring.next_used;
    if (vq.inflight)
        vq.inflight.published(vq.ring.next_used);
    if (VQL_UNLIKELY(vq.log && vq.log_used))
        vq.log->mark(vq.used_log_guest, offsetof(vql_used, ring));
    if (vql_ring_should_interrupt(&vq.ring) && vq.call)
        interrupt(vq);
    if (q.now == served_queue::state::draining)
        check_drained(q);
}

} // namespace vql
