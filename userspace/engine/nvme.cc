// SPDX-License-Identifier: GPL-2.0-only
#include "engine/nvme.h"

#include <algorithm>
#include <cassert>
#include <cerrno>

namespace vql {

namespace {

// Call @each(address, bytes) for @bytes of data, page by page, until it says false. Returns the
// bytes it said true for.
template <class F>
uint64_t walk(const vql_seg* seg, uint64_t skip, uint64_t bytes, F&& each) {
    uint64_t done = 0;
    for (; done < bytes; seg++, skip = 0) {
        uint8_t* at = static_cast<uint8_t*>(seg->base) + skip;
        uint64_t here = std::min<uint64_t>(seg->bytes - skip, bytes - done);
        while (here) {
            const uint64_t offset = reinterpret_cast<uintptr_t>(at) % VQL_NVME_PAGE_BYTES;
            const uint64_t n = std::min(here, VQL_NVME_PAGE_BYTES - offset);
            if (!each(at, n))
                return done;
            at += n;
            here -= n;
            done += n;
        }
    }
    return done;
}

} // namespace

void nvme_engine::cursor::advance(uint64_t bytes) {
    skip += bytes;
    while (skip && skip >= seg->bytes) { // not beyond the last one: skip is 0 there
        skip -= seg->bytes;
        seg++;
    }
}

result<void> nvme_engine::open(const nvme_queue& q) {
    if (q.depth < 2 || q.depth > max_depth)
        return error{"queues of " + std::to_string(q.depth) + " entries; 2 to " +
                     std::to_string(max_depth) + " can be used"};
    if (q.pool_pages < q.depth + 1)
        return error{"a pool of " + std::to_string(q.pool_pages) + " pages; queues of " +
                     std::to_string(q.depth) + " entries need " + std::to_string(q.depth + 1)};
    if (!q.limits.max_transfer || q.limits.max_transfer % VQL_NVME_PAGE_BYTES)
        return error{"transfers of at most " + std::to_string(q.limits.max_transfer) +
                     " bytes; a multiple of 4096 is needed"};
    slots_.resize(q.depth - 1);
    commands_.resize(max_depth);
    free_commands_.resize(slots_.size());
    free_bounce_.reserve(q.pool_pages);
    done_ = std::make_unique<finished[]>(slots_.size());
    for (slot& s : slots_) {
        s.active = false;
        s.next = free_;
        free_ = &s;
    }
    set_queue(q);
    return {};
}

void nvme_engine::set_queue(const nvme_queue& q) {
    queue_ = q;
    tail_ = rung_ = head_ = 0;
    phase_ = 1;
    failed_ = -1; // a new queue pair begins with all of it
    retry_at_ = never;
    // One entry of a queue stays empty (§3.3.1.5), so that all commands under way fit.
    const auto n = uint32_t(std::min<size_t>(q.depth - 1, free_commands_.size()));
    nfree_ = 0;
    for (command& c : commands_)
        c.owner = nullptr;
    for (uint32_t i = n; i-- > 0;)
        free_commands_[nfree_++] = uint16_t(i);
    plain_bytes_ =
        std::min<uint64_t>(q.limits.max_transfer, VQL_NVME_LIST_PRPS * VQL_NVME_PAGE_BYTES);
    zero_page_ = n;
    std::memset(page(zero_page_), 0, VQL_NVME_PAGE_BYTES);
    free_bounce_.clear();
    for (uint32_t i = std::min(q.pool_pages, max_pool_pages); --i > zero_page_;)
        if (free_bounce_.size() < free_bounce_.capacity())
            free_bounce_.push_back(int16_t(i));
    assert(!free_bounce_.empty());
}

inline void nvme_engine::push(slot& s, uint32_t index, uint64_t offset, uint64_t bytes) {
    command& c = commands_[index];
    c.owner = &s;
    c.offset = offset;
    c.since_ns = 0;
    c.bytes = uint32_t(bytes);
    c.bounce = -1;
    c.retries = 0;
    c.now = command::state::plain;
    nfree_--;
    move_tail();
}

inline void nvme_engine::put(slot& s, uint32_t index, uint64_t bytes) {
    push(s, index, s.offset, bytes);
    s.commands++;
    s.offset += bytes;
    s.left -= bytes;
}

// What nearly all are: a read or write of one run of guest memory, that one command can carry.
// False: @s takes the long way, and nothing was done.
[[gnu::always_inline]] inline bool nvme_engine::issue_plain(slot& s) {
    const piece& p = s.p;
    const target& t = *p.where;
    if (VQL_UNLIKELY(p.op > VQL_OP_WRITE || !p.dma || p.seg->bytes - p.skip < p.bytes ||
                     p.bytes > plain_bytes_ || (p.offset | p.bytes) & (t.block_bytes - 1) ||
                     waiting_head_ || !nfree_ || lost()))
        return false;
    if (VQL_UNLIKELY(t.boundary_blocks)) {
        const uint64_t boundary = uint64_t(t.boundary_blocks) * t.block_bytes;
        if (p.offset % boundary + p.bytes > boundary)
            return false;
    }
    const uint8_t* at = static_cast<const uint8_t*>(p.seg->base) + p.skip;
    const uint8_t* const end = at + p.bytes;
    const uint64_t first = p.dma->at(at);
    if (VQL_UNLIKELY(first & 3)) // not mapped, too
        return false;
    const uint32_t index = free_commands_[nfree_ - 1];
    at += VQL_NVME_PAGE_BYTES - first % VQL_NVME_PAGE_BYTES;
    uint64_t second = 0;
    if (at < end) {
        second = p.dma->at(at);
        if (VQL_UNLIKELY(second == dma_unmapped))
            return false;
        at += VQL_NVME_PAGE_BYTES;
        if (at < end) {
            auto* list = reinterpret_cast<uint64_t*>(page(index));
            *list++ = second;
            for (; at < end; at += VQL_NVME_PAGE_BYTES, list++) {
                *list = p.dma->at(at);
                if (VQL_UNLIKELY(*list == dma_unmapped))
                    return false;
            }
            second = page_dma(index);
        }
    }
    vql_nvme_sqe& sqe = queue_.sq[tail_];
    const uint32_t shift = t.block_bytes == 4096 ? 12 : VQL_SECTOR_SHIFT;
    const bool read = p.op == VQL_OP_READ;
    vql_nvme_command(&sqe, read ? VQL_NVME_READ : VQL_NVME_WRITE, cid_of(index), t.nsid);
    sqe.data.prp[0] = first;
    sqe.data.prp[1] = second;
    vql_nvme_blocks(&sqe, p.offset >> shift, uint32_t(p.bytes >> shift), read ? 0 : fua(p));
    push(s, index, p.offset, p.bytes);
    s.left = 0;
    s.commands = 1;
    s.status = VQL_STATUS_OK;
    s.flush_next = false;
    s.waiting = false;
    s.active = true;
    return true;
}

bool nvme_engine::submit(const piece& p) {
    piece* const here = room();
    if (!here)
        return false;
    *here = p;
    submit();
    return true;
}

void nvme_engine::submit() {
    slot& s = *free_;
    free_ = s.next;
    in_flight_++;
    if (VQL_LIKELY(issue_plain(s)))
        return;
    s.active = true;
    start(s);
}

[[gnu::always_inline]] inline void nvme_engine::finish(slot& s) {
    done_[ndone_++] = {s.p.owner, vql_status(s.status)};
    s.active = false;
    s.next = free_;
    free_ = &s;
}

// Make the next commands of @s, which is not on the list, or put it there.
[[gnu::always_inline]] inline void nvme_engine::proceed(slot& s) {
    if ((s.left || s.flush_next) && (waiting_head_ || lost() || !issue(s)))
        wait(s);
    else if (!s.commands)
        finish(s);
}

// From its beginning.
void nvme_engine::start(slot& s) {
    const piece& p = s.p;
    s.offset = p.offset;
    s.left = p.bytes;
    s.data = {p.seg, p.skip};
    s.commands = 0;
    s.status = VQL_STATUS_OK;
    s.flush_next = false;
    s.waiting = false;
    s.next = nullptr;
    switch (p.op) {
    case VQL_OP_READ:
    case VQL_OP_WRITE:
        if (!p.dma)
            fail(s, VQL_STATUS_IOERR, p.offset, EFAULT);
        break;
    case VQL_OP_FLUSH:
        s.left = 0;
        s.flush_next = queue_.volatile_cache;
        break;
    case VQL_OP_DISCARD:
        s.flush_next = p.durable && queue_.volatile_cache;
        if (!queue_.discard)
            fail(s, VQL_STATUS_UNSUPP, p.offset, 0);
        break;
    case VQL_OP_WRITE_ZEROES: break;
    default: fail(s, VQL_STATUS_UNSUPP, p.offset, 0);
    }
    if ((s.offset | s.left) & (p.where->block_bytes - 1)) // a disk's blocks are never smaller
        fail(s, VQL_STATUS_IOERR, p.offset, EINVAL);
    proceed(s);
}

void nvme_engine::wait(slot& s) {
    s.waiting = true;
    s.next = nullptr;
    (waiting_tail_ ? waiting_tail_->next : waiting_head_) = &s;
    waiting_tail_ = &s;
}

void nvme_engine::serve_waiting() {
    while (slot* s = waiting_head_) {
        if (!issue(*s))
            return;
        waiting_head_ = s->next;
        if (!waiting_head_)
            waiting_tail_ = nullptr;
        s->waiting = false;
        if (!s->commands)
            finish(*s);
    }
}

// Make as many commands of @s as may be under way at a time. False: more could be, but there is no
// free command or bounce page.
bool nvme_engine::issue(slot& s) {
    while (s.left || s.flush_next) {
        if (s.commands == max_commands || (!s.left && s.commands))
            return true;
        if (!nfree_)
            return false;
        if (!s.left)
            issue_flush(s);
        else if (s.p.op == VQL_OP_DISCARD)
            issue_discard(s);
        else if (s.p.op == VQL_OP_WRITE_ZEROES)
            issue_zeroes(s);
        else if (!issue_data(s))
            return false;
    }
    return true;
}

uint32_t nvme_engine::begin(const slot& s, vql_nvme_opcode opcode, vql_nvme_sqe& sqe) const {
    const uint32_t index = free_commands_[nfree_ - 1];
    command_of(s, index, opcode, sqe);
    return index;
}

void nvme_engine::put(slot& s, uint32_t index, const vql_nvme_sqe& sqe, uint64_t bytes) {
    queue_.sq[tail_] = sqe;
    put(s, index, bytes);
}

// The most that one command of @op does from where @s is.
uint64_t nvme_engine::limit_of(const slot& s, uint32_t op) const {
    const target& t = *s.p.where;
    const uint32_t shift = t.block_bytes == 4096 ? 12 : VQL_SECTOR_SHIFT;
    return vql_nvme_most(&queue_.limits, op, shift, uint64_t(t.boundary_blocks) * t.block_bytes,
                         s.offset, s.left);
}

bool nvme_engine::issue_data(slot& s) {
    const bool read = s.p.op == VQL_OP_READ;
    const uint32_t block = s.p.where->block_bytes;
    const uint64_t limit = limit_of(s, s.p.op);
    vql_nvme_sqe sqe;
    const uint32_t index = begin(s, read ? VQL_NVME_READ : VQL_NVME_WRITE, sqe);
    const uint64_t bytes = build(s, s.data, index, limit, sqe);

    // What one command does not carry whole is looked at before the first: memory that was taken
    // away while the piece was on its way fails all of it, bounced or not.
    if (VQL_UNLIKELY(bytes == fault || (bytes < s.left && s.left == s.p.bytes && !mapped(s)))) {
        fail(s, VQL_STATUS_IOERR, s.offset, EFAULT);
        return true;
    }
    if (VQL_UNLIKELY(!bytes))
        return issue_bounced(s, index, sqe, limit);
    vql_nvme_blocks(&sqe, s.offset / block, uint32_t(bytes / block), read ? 0 : fua(s.p));
    put(s, index, sqe, bytes);
    if (s.left)
        s.data.advance(bytes);
    return true;
}

// The next blocks of @s, through a page of the pool: up to the first that can do without.
bool nvme_engine::issue_bounced(slot& s, uint32_t index, vql_nvme_sqe& sqe, uint64_t limit) {
    const bool read = s.p.op == VQL_OP_READ;
    const uint32_t block = s.p.where->block_bytes;
    const uint64_t most = std::min<uint64_t>(limit, VQL_NVME_PAGE_BYTES);
    uint64_t bytes = block;

    if (free_bounce_.empty())
        return false;
    cursor at = s.data;
    vql_nvme_sqe scratch{};
    for (; bytes < most; bytes += block) {
        at.advance(block);
        if (build(s, at, index, block, scratch))
            break;
    }
    const int16_t bounce = free_bounce_.back();
    free_bounce_.pop_back();
    if (!read)
        copy_data(s.p, s.data.seg, s.data.skip, page(uint32_t(bounce)), bytes, false);
    sqe.data.prp[0] = page_dma(uint32_t(bounce));
    sqe.data.prp[1] = 0;
    sqe.flags = 0;
    vql_nvme_blocks(&sqe, s.offset / block, uint32_t(bytes / block), read ? 0 : fua(s.p));
    const cursor data = s.data;
    put(s, index, sqe, bytes);
    commands_[index].bounce = bounce;
    commands_[index].data = data;
    if (s.left)
        s.data.advance(bytes);
    return true;
}

// Is all of its data mapped for DMA?
bool nvme_engine::mapped(const slot& s) const {
    const piece& p = s.p;
    return walk(p.seg, p.skip, p.bytes, [&](const uint8_t* at, uint64_t) {
               return p.dma->at(at) != dma_unmapped;
           }) == p.bytes;
}

// Point @sqe to the data at @at: @limit bytes of it, or as many whole blocks as can be said.
// Returns how many bytes that is, or fault: some of it is not mapped.
uint64_t nvme_engine::build(const slot& s, const cursor& at, uint32_t index, uint64_t limit,
                            vql_nvme_sqe& sqe) const {
    const uint64_t partial = s.p.where->block_bytes - 1;
    const uint64_t by_prp = build_prp(s.p, at, index, limit, sqe);
    if (VQL_LIKELY(by_prp == limit) || by_prp == fault)
        return by_prp;
    if (queue_.sgl) {
        const uint64_t by_sgl = build_sgl(s.p, at, index, limit, sqe);
        if (by_sgl & partial && by_sgl != fault)
            build_sgl(s.p, at, index, by_sgl & ~partial, sqe);
        return by_sgl == fault ? fault : by_sgl & ~partial;
    }
    if (by_prp & partial) // a list has no entry too many
        build_prp(s.p, at, index, by_prp & ~partial, sqe);
    return by_prp & ~partial;
}

uint64_t nvme_engine::build_prp(const piece& p, const cursor& at, uint32_t index, uint64_t bytes,
                                vql_nvme_sqe& sqe) const {
    vql_nvme_prp b;
    bool unmapped = false;
    vql_nvme_prp_begin(&b, reinterpret_cast<__u64*>(page(index)));
    const uint64_t done = walk(at.seg, at.skip, bytes, [&](const uint8_t* from, uint64_t n) {
        const uint64_t dma = p.dma->at(from);
        unmapped = dma == dma_unmapped;
        return !unmapped && vql_nvme_prp_add(&b, dma, n);
    });
    vql_nvme_prp_end(&b, page_dma(index), &sqe);
    return unmapped ? fault : done;
}

uint64_t nvme_engine::build_sgl(const piece& p, const cursor& at, uint32_t index, uint64_t bytes,
                                vql_nvme_sqe& sqe) const {
    vql_nvme_sgls b;
    bool unmapped = false;
    vql_nvme_sgl_begin(&b, reinterpret_cast<vql_nvme_sgl*>(page(index)));
    const uint64_t done = walk(at.seg, at.skip, bytes, [&](const uint8_t* from, uint64_t n) {
        const uint64_t dma = p.dma->at(from);
        unmapped = dma == dma_unmapped;
        return !unmapped && vql_nvme_sgl_add(&b, dma, uint32_t(n));
    });
    vql_nvme_sgl_end(&b, page_dma(index), &sqe);
    return unmapped ? fault : done;
}

// WRITE ZEROES, or where the controller has no such command, a write of the page of zeroes. Returns
// how many of @bytes that is.
uint64_t nvme_engine::say_zeroes(const slot& s, uint32_t index, uint64_t offset, uint64_t bytes,
                                 vql_nvme_sqe& sqe) const {
    const uint32_t block = s.p.where->block_bytes;
    if (queue_.write_zeroes) {
        command_of(s, index, VQL_NVME_WRITE_ZEROES, sqe);
        vql_nvme_blocks(&sqe, offset / block, uint32_t(bytes / block),
                        fua(s.p) | (s.p.flags & VQL_IO_UNMAP ? VQL_NVME_DEAC : 0));
        return bytes;
    }
    uint64_t done = 0;
    vql_nvme_prp b;
    command_of(s, index, VQL_NVME_WRITE, sqe);
    vql_nvme_prp_begin(&b, reinterpret_cast<__u64*>(page(index)));
    while (done < bytes) {
        const uint64_t n = std::min<uint64_t>(bytes - done, VQL_NVME_PAGE_BYTES);
        if (!vql_nvme_prp_add(&b, page_dma(zero_page_), n))
            break; // the list is full
        done += n;
    }
    vql_nvme_prp_end(&b, page_dma(index), &sqe);
    vql_nvme_blocks(&sqe, offset / block, uint32_t(done / block), fua(s.p));
    return done;
}

void nvme_engine::issue_zeroes(slot& s) {
    const uint32_t index = free_commands_[nfree_ - 1];
    vql_nvme_sqe sqe;
    const uint64_t limit = limit_of(s, queue_.write_zeroes ? VQL_OP_WRITE_ZEROES : VQL_OP_WRITE);
    const uint64_t bytes = say_zeroes(s, index, s.offset, limit, sqe);
    put(s, index, sqe, bytes);
}

void nvme_engine::say_discard(const slot& s, uint32_t index, uint64_t offset, uint64_t bytes,
                              vql_nvme_sqe& sqe) const {
    const uint32_t block = s.p.where->block_bytes;
    command_of(s, index, VQL_NVME_DSM, sqe);
    vql_nvme_deallocate(&sqe, reinterpret_cast<vql_nvme_dsm_range*>(page(index)), page_dma(index),
                        offset / block, uint32_t(bytes / block));
}

void nvme_engine::issue_discard(slot& s) {
    const uint32_t index = free_commands_[nfree_ - 1];
    const uint64_t bytes = limit_of(s, VQL_OP_DISCARD);
    vql_nvme_sqe sqe;
    say_discard(s, index, s.offset, bytes, sqe);
    put(s, index, sqe, bytes);
}

void nvme_engine::issue_flush(slot& s) {
    vql_nvme_sqe sqe;
    const uint32_t index = begin(s, VQL_NVME_FLUSH, sqe);
    put(s, index, sqe, 0);
    s.flush_next = false;
}

void nvme_engine::flush() {
    if (tail_ == rung_ || lost())
        return;
    vql_nvme_ring(queue_.sq_doorbell, queue_.sq_shadow, queue_.sq_event, rung_, tail_);
    rung_ = tail_;
}

bool nvme_engine::pending() const {
    return ndone_ || lost() || (vql_load_acquire(&queue_.cq[head_].status) & 1u) == phase_;
}

// False: the queue pair was lost meanwhile, and nothing was done.
[[gnu::always_inline]] inline bool nvme_engine::complete(const vql_nvme_cqe& cqe) {
    const uint32_t index = cqe.cid & ((1u << index_bits) - 1);
    command& c = commands_[index];
    if (VQL_UNLIKELY(!c.owner || c.generation != cqe.cid >> index_bits)) {
        unexpected_++;
        return true;
    }
    if (VQL_UNLIKELY(vql_nvme_status_code(&cqe))) {
        // The queue pair is just being deleted, and the state word is about to say so: this command
        // is as unfinished as those that get no completion at all.
        if (vql_nvme_status_code(&cqe) == VQL_NVME_SC_SQ_DELETED)
            return true;
        if (!fails_for_now(c, index, cqe.status >> 1))
            end_command(c, index, vql_nvme_status(&cqe), EIO);
        return true;
    }
    slot& s = *c.owner;
    if (VQL_UNLIKELY(c.bounce >= 0)) {
        if (s.p.op == VQL_OP_READ) {
            copy_data(s.p, c.data.seg, c.data.skip, page(uint32_t(c.bounce)), c.bytes, true);
            // Zeroes may have been copied in place of data: then it is done again. The barrier
            // keeps the loads from the pool before that of the state word.
            vql_dma_rmb();
            if (lost())
                return false;
        }
        free_bounce_.push_back(c.bounce);
    }
    c.owner = nullptr;
    next_generation(c);
    free_commands_[nfree_++] = uint16_t(index);
    s.commands--;
    if (!s.waiting) // else serve_waiting() goes on with it
        proceed(s);
    return true;
}

// It has failed, and is not under way any more.
[[gnu::noinline]] void nvme_engine::end_command(command& c, uint32_t index, vql_status status,
                                                int err) {
    slot& s = *c.owner;
    if (c.bounce >= 0)
        free_bounce_.push_back(c.bounce);
    c.owner = nullptr;
    next_generation(c);
    free_commands_[nfree_++] = uint16_t(index);
    s.commands--;
    fail(s, status, c.offset, err);
    if (!s.waiting)
        proceed(s);
}

void nvme_engine::reap() {
    if (lost())
        return;
    const uint32_t old = head_;
    uint32_t n = 0;
    for (vql_nvme_cqe cqe; n < queue_.depth && vql_nvme_cqe_take(&queue_.cq[head_], phase_, &cqe);
         n++) {
        // The entry may have been read as zeroes, which look like a success in every other pass.
        // The load of the state word cannot move before that of the entry, which is an acquire.
        if (VQL_UNLIKELY(lost()))
            return;
        if (++head_ == queue_.depth) {
            head_ = 0;
            phase_ ^= 1;
        }
        if (VQL_UNLIKELY(!complete(cqe)))
            return;
    }
    if (!n)
        return;
    vql_nvme_ring(queue_.cq_doorbell, queue_.cq_shadow, queue_.cq_event, old, head_);
    serve_waiting();
}

// The first error is the piece's; no more of its commands are made.
void nvme_engine::fail(slot& s, vql_status status, uint64_t offset, int err) {
    s.left = 0;
    s.flush_next = false;
    if (failed_ >= 0) // one of these may be its, and waits for nothing any more
        retry_at_ = 0;
    if (s.status != VQL_STATUS_OK)
        return;
    s.status = status;
    if (status != VQL_STATUS_IOERR)
        return;
    // Read by the control thread, which tells the operator; a mixture of two errors is harmless.
    target& t = *s.p.where;
    t.last_errno.store(err, std::memory_order_relaxed);
    t.last_error_op.store(s.p.op, std::memory_order_relaxed);
    t.last_error_offset.store(offset, std::memory_order_relaxed);
    t.errors.fetch_add(1, std::memory_order_relaxed);
}

std::pair<uint16_t, uint16_t> nvme_engine::last_command(const request* owner) const {
    const uint16_t cid = queue_.sq[(tail_ ? tail_ : queue_.depth) - 1].cid;
    const slot* const s = commands_[cid & ((1u << index_bits) - 1)].owner;
    if (!s || s->p.owner != owner)
        return {};
    return {queue_.qid, cid};
}

void nvme_engine::clear_done() {
    in_flight_ -= ndone_;
    ndone_ = 0;
}

std::vector<uint16_t> nvme_engine::overdue(uint64_t now_ns, uint64_t limit_ns) {
    std::vector<uint16_t> late;
    for (uint32_t i = 0; i < commands_.size(); i++) {
        command& c = commands_[i];
        if (!c.owner || c.now == command::state::failed)
            continue;
        if (!c.since_ns)
            c.since_ns = now_ns;
        if (now_ns - c.since_ns < limit_ns)
            continue;
        c.now = command::state::aborted;
        late.push_back(cid_of(i));
    }
    return late;
}

void nvme_engine::replace(const nvme_queue& q) {
    waiting_head_ = waiting_tail_ = nullptr;
    set_queue(q);
    for (slot& s : slots_) {
        if (!s.active)
            continue;
        if (s.status == VQL_STATUS_OK)
            start(s);
        else
            finish(s); // it had failed, and no command of it is under way any more
    }
}

std::vector<piece> nvme_engine::take_unfinished() {
    std::vector<piece> taken;
    for (slot& s : slots_) {
        if (!s.active)
            continue;
        taken.push_back(s.p);
        s.active = false;
        s.next = free_;
        free_ = &s;
    }
    in_flight_ -= uint32_t(taken.size());
    failed_ = -1;
    retry_at_ = never;
    waiting_head_ = waiting_tail_ = nullptr;
    for (command& c : commands_)
        c.owner = nullptr; // the queue pair was lost: they never complete
    return taken;
}

} // namespace vql
