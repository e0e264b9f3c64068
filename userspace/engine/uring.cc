// SPDX-License-Identifier: GPL-2.0-only
#include "engine/uring.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/uio.h>
#include <vqlane/limits.h>

#ifndef BLOCK_URING_CMD_DISCARD // linux/blkdev.h of Linux 6.12
#define BLOCK_URING_CMD_DISCARD _IO(0x12, 0)
#endif

namespace vql {

namespace {
constexpr uint32_t iovec_arena = 16384;
constexpr uint32_t buffer_table = 1024;
constexpr uint8_t max_retries = 16;
// Of one call (UIO_MAXIOV). With O_DIRECT each but the last is a number of whole blocks, else the
// data goes through a bounce buffer; so any number of them is.
constexpr uint32_t most_iovecs = 1024;
constexpr uint64_t file_block = 512; // of a regular file, whatever its file system's are
} // namespace

result<void> uring_engine::open(io_uring& ring) {
    ring_ = &ring;
    if (!(ring.features & IORING_FEAT_SUBMIT_STABLE))
        return error{"io_uring of this kernel is too old (Linux 6.1 or later is needed)"};
    bounce_ = mapping::map(-1, bounce_buffers * bounce_bytes, MAP_PRIVATE | MAP_ANONYMOUS);
    zeroes_ = mapping::map(-1, bounce_bytes, MAP_PRIVATE | MAP_ANONYMOUS, 0, PROT_READ);
    if (!bounce_ || !zeroes_)
        return errno_error("bounce buffers", errno);
    slots_.resize(slots);
    iovecs_.resize(iovec_arena);
    done_.reserve(slots);
    for (slot& s : slots_)
        free_.push_back(&s);
    for (uint32_t i = bounce_buffers; i-- > 0;)
        free_bounce_.push_back(int16_t(i));

    // What would wait in submission (a full or frozen file system, every fsync) the kernel gives to
    // threads of its own, by default four for each CPU: requests of one target that hangs would
    // take them all, and other targets' flushes would wait behind. So there is one for each slot,
    // made when it is needed. Where the kernel does not know that, it is as it was.
    std::array<unsigned, 2> most = {slots, slots};
    io_uring_register_iowq_max_workers(ring_, most.data());

    // Both tables are an optimisation: without them every entry names its file and its memory.
    if (io_uring_register_files_sparse(ring_, VQL_MAX_TARGETS) == 0)
        registered_files_ = VQL_MAX_TARGETS;
    file_registered_.assign(VQL_MAX_TARGETS, false);
    used_.assign(VQL_MAX_TARGETS, 0);
    own_.resize(VQL_MAX_TARGETS);
    own_in_use_.assign(VQL_MAX_TARGETS, false);
    if (io_uring_register_buffers_sparse(ring_, buffer_table) == 0)
        for (uint32_t i = buffer_table; i-- > 0;)
            free_buffers_.push_back(int16_t(i));
    return {};
}

void uring_engine::set_share() {
    share_ = uint32_t(std::max<size_t>(1, slots / 2 / std::max<size_t>(1, targets_)));
}

void uring_engine::add_target(const target& t) {
    if (t.kind != target_kind::uring)
        return;
    targets_++;
    set_share();
    own_[t.id] = mapping::map(-1, bounce_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
    int fd = t.fd.get();
    if (t.id < registered_files_)
        file_registered_[t.id] = io_uring_register_files_update(ring_, t.id, &fd, 1) == 1;
}

void uring_engine::remove_target(const target& t) {
    if (t.kind != target_kind::uring)
        return;
    targets_--;
    set_share();
    own_[t.id] = mapping();
    int no_file = -1;
    if (file_registered_[t.id])
        io_uring_register_files_update(ring_, t.id, &no_file, 1);
    file_registered_[t.id] = false;
}

int16_t uring_engine::add_buffer(void* base, uint64_t bytes) {
    if (free_buffers_.empty())
        return -1;
    const int16_t index = free_buffers_.back();
    const iovec iov = {base, bytes};
    const __u64 tag = 0;
    if (io_uring_register_buffers_update_tag(ring_, unsigned(index), &iov, &tag, 1) != 1)
        return -1;
    free_buffers_.pop_back();
    return index;
}

void uring_engine::remove_buffer(int16_t buffer) {
    const iovec none = {nullptr, 0};
    const __u64 tag = 0;
    io_uring_register_buffers_update_tag(ring_, unsigned(buffer), &none, &tag, 1);
    free_buffers_.push_back(buffer);
}

io_uring_sqe* uring_engine::sqe() {
    io_uring_sqe* e = io_uring_get_sqe(ring_);
    while (!e) { // full: submission makes room, for the kernel takes all entries or says -EBUSY
        flush();
        e = io_uring_get_sqe(ring_);
    }
    return e;
}

void uring_engine::flush() {
    const int n = io_uring_submit_and_get_events(ring_);
    if (n >= 0 && !io_uring_sq_ready(ring_))
        iovecs_used_ = 0;
}

bool uring_engine::submit(const piece& p) {
    if (!has_room(p.where->id))
        return false;
    slot& s = *free_.back();
    free_.pop_back();
    used_[p.where->id]++;
    s.p = p;
    s.step_bytes = 0;
    s.bounce = no_buffer;
    s.flushing = false;
    s.retries = 0;
    s.next_waiting = nullptr;
    s.bouncing = needs_bounce(s);
    s.how =
        p.op == VQL_OP_WRITE_ZEROES && !(p.flags & VQL_IO_UNMAP) ? zeroing::range : zeroing::punch;
    start(s);
    return true;
}

bool uring_engine::needs_bounce(const slot& s) const {
    const piece& p = s.p;
    if (p.op != VQL_OP_READ && p.op != VQL_OP_WRITE)
        return false;
    if (p.unpinnable)
        return true;
    if (!p.where->direct)
        return false;
    const uint64_t address_mask = p.where->memory_align - 1;
    const uint64_t length_mask = p.where->block_bytes - 1;
    uint64_t left = p.bytes, skip = p.skip;
    for (const vql_seg* seg = p.seg; left; seg++) {
        const uint64_t here = std::min<uint64_t>(seg->bytes - skip, left);
        if (((reinterpret_cast<uintptr_t>(seg->base) + skip) & address_mask) ||
            (here & length_mask))
            return true;
        left -= here;
        skip = 0;
    }
    return false;
}

void uring_engine::prep_file(io_uring_sqe* e, const slot& s) {
    const target& t = *s.p.where;
    if (file_registered_[t.id]) {
        e->fd = int(t.id);
        e->flags |= IOSQE_FIXED_FILE;
    } else {
        e->fd = t.fd.get();
    }
    io_uring_sqe_set_data64(e, reinterpret_cast<uintptr_t>(&s));
}

void uring_engine::start(slot& s) {
    if (s.flushing || s.p.op == VQL_OP_FLUSH) {
        io_uring_sqe* e = sqe();
        io_uring_prep_fsync(e, -1, IORING_FSYNC_DATASYNC);
        prep_file(e, s);
    } else if (s.p.op == VQL_OP_DISCARD) {
        start_discard(s);
    } else if (s.p.op == VQL_OP_WRITE_ZEROES) {
        start_zeroes(s);
    } else {
        start_data(s);
    }
}

// One that all targets share or, when those are in use, @s's target's own. So storage that does not
// answer, and keeps what it has, leaves one to each of the others.
bool uring_engine::take_bounce(slot& s) {
    if (!free_bounce_.empty()) {
        s.bounce = free_bounce_.back();
        free_bounce_.pop_back();
        return true;
    }
    const uint32_t id = s.p.where->id;
    if (!own_[id] || own_in_use_[id])
        return false;
    own_in_use_[id] = true;
    s.bounce = own_buffer;
    return true;
}

// … and have the first that it is for go on, of those who wait.
void uring_engine::give_bounce_back(slot& s) {
    const uint32_t id = s.p.where->id;
    const bool own = s.bounce == own_buffer;
    if (own)
        own_in_use_[id] = false;
    else
        free_bounce_.push_back(s.bounce);
    s.bounce = no_buffer;
    slot* before = nullptr;
    slot* next = waiting_head_;
    while (next && own && next->p.where->id != id) {
        before = next;
        next = next->next_waiting;
    }
    if (!next)
        return;
    (before ? before->next_waiting : waiting_head_) = next->next_waiting;
    if (next == waiting_tail_)
        waiting_tail_ = before;
    next->next_waiting = nullptr;
    start(*next);
}

void uring_engine::start_data(slot& s) {
    piece& p = s.p;
    const bool read = p.op == VQL_OP_READ;

    if (s.bouncing && s.bounce == no_buffer && !take_bounce(s)) {
        (waiting_tail_ ? waiting_tail_->next_waiting : waiting_head_) = &s;
        waiting_tail_ = &s;
        return;
    }

    const uint64_t first = p.seg->bytes - p.skip;
    uint8_t* const base = static_cast<uint8_t*>(p.seg->base) + p.skip;
    io_uring_sqe* e = sqe();
    s.step_bytes = p.bytes;
    if (s.bouncing) {
        s.step_bytes = std::min(p.bytes, bounce_bytes);
        if (!read)
            copy_data(p, p.seg, p.skip, bounce_of(s), s.step_bytes, false);
        uint8_t* at = bounce_of(s);
        if (read)
            io_uring_prep_read(e, -1, at, unsigned(s.step_bytes), p.offset);
        else
            io_uring_prep_write(e, -1, at, unsigned(s.step_bytes), p.offset);
    } else if (first >= p.bytes) {
        if (p.buffer >= 0 && read)
            io_uring_prep_read_fixed(e, -1, base, unsigned(p.bytes), p.offset, p.buffer);
        else if (p.buffer >= 0)
            io_uring_prep_write_fixed(e, -1, base, unsigned(p.bytes), p.offset, p.buffer);
        else if (read)
            io_uring_prep_read(e, -1, base, unsigned(p.bytes), p.offset);
        else
            io_uring_prep_write(e, -1, base, unsigned(p.bytes), p.offset);
    } else {
        if (iovecs_used_ + std::min(p.nsegs, most_iovecs) > iovecs_.size()) {
            // No entry but the one in hand may refer to the arena after this: put it in as a no-op.
            io_uring_prep_nop(e);
            io_uring_sqe_set_data64(e, 0);
            while (iovecs_used_)
                flush();
            e = sqe();
        }
        iovec* const iov = &iovecs_[iovecs_used_];
        uint64_t left = p.bytes, skip = p.skip;
        uint32_t n = 0;
        for (; left && n < most_iovecs; n++) {
            const uint64_t here = std::min<uint64_t>(p.seg[n].bytes - skip, left);
            iov[n] = {static_cast<uint8_t*>(p.seg[n].base) + skip, here};
            left -= here;
            skip = 0;
        }
        iovecs_used_ += n;
        s.step_bytes -= left; // the next step's
        if (read)
            io_uring_prep_readv(e, -1, iov, n, p.offset);
        else
            io_uring_prep_writev(e, -1, iov, n, p.offset);
    }
    if (!read && p.durable)
        e->rw_flags = RWF_DSYNC;
    prep_file(e, s);
}

void uring_engine::start_discard(slot& s) {
    target& t = *s.p.where;
    io_uring_sqe* e = sqe();
    s.step_bytes = s.p.bytes;
    if (t.block_device && t.bdev_discard.load(std::memory_order_relaxed)) {
        io_uring_prep_rw(IORING_OP_URING_CMD, e, -1, nullptr, 0, 0);
        e->cmd_op = BLOCK_URING_CMD_DISCARD;
        e->addr = s.p.offset;
        e->addr3 = s.p.bytes;
    } else {
        io_uring_prep_fallocate(e, -1, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                off_t(s.p.offset), off_t(s.p.bytes));
    }
    prep_file(e, s);
}

void uring_engine::start_zeroes(slot& s) {
    piece& p = s.p;
    target& t = *p.where;
    if (s.how == zeroing::punch && !t.punch_hole.load(std::memory_order_relaxed))
        s.how = zeroing::range;
    if (s.how == zeroing::range && !t.zero_range.load(std::memory_order_relaxed))
        s.how = zeroing::write;
    io_uring_sqe* e = sqe();
    s.step_bytes = p.bytes;
    if (s.how == zeroing::write) {
        s.step_bytes = std::min(p.bytes, bounce_bytes);
        io_uring_prep_write(e, -1, zeroes_.data(), unsigned(s.step_bytes), p.offset);
    } else {
        const int mode = s.how == zeroing::punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
        io_uring_prep_fallocate(e, -1, mode | FALLOC_FL_KEEP_SIZE, off_t(p.offset), off_t(p.bytes));
    }
    prep_file(e, s);
}

void uring_engine::advance(slot& s, uint64_t bytes) {
    piece& p = s.p;
    p.offset += bytes;
    p.bytes -= bytes;
    if (p.op == VQL_OP_WRITE_ZEROES)
        return;
    p.skip += bytes;
    while (p.nsegs && p.skip >= p.seg->bytes) {
        p.skip -= p.seg->bytes;
        p.seg++;
        p.nsegs--;
    }
}

// Has a read come to stand inside a block? It has met the end of a file whose last block is cut
// short; through the page cache it may also have stopped anywhere, but then it moves on.
bool uring_engine::in_block(const slot& s) {
    return s.p.op == VQL_OP_READ && s.p.offset % file_block;
}

// What is missing of the block is read as zeroes.
void uring_engine::fill_block(slot& s) {
    const uint64_t bytes = std::min(file_block - s.p.offset % file_block, s.p.bytes);
    copy_data(s.p, s.p.seg, s.p.skip, zeroes_.data(), bytes, true);
    advance(s, bytes);
}

// The file system or device refused the way we asked: is there another?
bool uring_engine::fall_back(slot& s, int err) {
    target& t = *s.p.where;
    const bool refused = err == EOPNOTSUPP || err == EINVAL || err == ENOTTY || err == ENOSYS;

    if (s.flushing || s.p.op == VQL_OP_FLUSH)
        return false;
    switch (s.p.op) {
    case VQL_OP_READ:
    case VQL_OP_WRITE:
        // O_DIRECT was stricter than it said. Through an aligned buffer it works, or truly fails.
        if (err != EINVAL || !t.direct || s.bouncing)
            return false;
        s.bouncing = true;
        return true;
    case VQL_OP_DISCARD:
        if (!refused || !t.block_device || !t.bdev_discard.load(std::memory_order_relaxed))
            return false;
        t.bdev_discard.store(false, std::memory_order_relaxed);
        return true;
    case VQL_OP_WRITE_ZEROES:
        if (!refused || s.how == zeroing::write)
            return false;
        if (s.how == zeroing::punch) {
            t.punch_hole.store(false, std::memory_order_relaxed);
            s.how = zeroing::range;
        } else {
            t.zero_range.store(false, std::memory_order_relaxed);
            s.how = zeroing::write;
        }
        return true;
    default: return false;
    }
}

void uring_engine::fail(slot& s, int err) {
    target& t = *s.p.where;
    // Read by the control thread, which tells the operator; a mixture of two errors is harmless.
    t.last_errno.store(err, std::memory_order_relaxed);
    t.last_error_op.store(s.flushing ? uint8_t(VQL_OP_FLUSH) : s.p.op, std::memory_order_relaxed);
    t.last_error_offset.store(s.p.offset, std::memory_order_relaxed);
    t.errors.fetch_add(1, std::memory_order_relaxed);
    finish(s, VQL_STATUS_IOERR);
}

void uring_engine::finish(slot& s, vql_status status) {
    if (s.bounce != no_buffer)
        give_bounce_back(s);
    used_[s.p.where->id]--;
    done_.push_back({s.p.owner, status});
    free_.push_back(&s);
}

void uring_engine::complete(uint64_t user_data, int32_t res) {
    slot& s = *reinterpret_cast<slot*>(user_data);
    if (res < 0) {
        if ((res == -EINTR || res == -EAGAIN) && s.retries++ < max_retries)
            return start(s);
        if (fall_back(s, -res))
            return start(s);
        if (s.p.op == VQL_OP_DISCARD && res == -EOPNOTSUPP)
            return finish(s, VQL_STATUS_UNSUPP);
        return fail(s, -res);
    }
    const bool moves = s.p.op == VQL_OP_READ || s.p.op == VQL_OP_WRITE ||
                       (s.p.op == VQL_OP_WRITE_ZEROES && s.how == zeroing::write);
    if (moves && !s.flushing) {
        if (res == 0 && !in_block(s))
            return fail(s, EIO); // the file ended: it was cut short behind our back
        const uint64_t bytes = std::min(uint64_t(res), s.step_bytes);
        if (s.bouncing && s.p.op == VQL_OP_READ)
            copy_data(s.p, s.p.seg, s.p.skip, bounce_of(s), bytes, true);
        advance(s, bytes);
        if (s.p.bytes && in_block(s) && (res == 0 || s.p.where->direct))
            fill_block(s);
        if (s.p.bytes) {
            s.p.buffer = -1; // the rest may lie in the next segment, in another buffer
            return start(s);
        }
    }
    const bool stays = s.p.op == VQL_OP_WRITE_ZEROES || s.p.op == VQL_OP_DISCARD;
    if (stays && s.p.durable && !s.flushing) {
        s.flushing = true;
        return start(s);
    }
    finish(s, VQL_STATUS_OK);
}

} // namespace vql
