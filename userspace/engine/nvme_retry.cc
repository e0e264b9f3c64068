// SPDX-License-Identifier: GPL-2.0-only
// The NVMe engine's commands that have failed for now: a list in which they wait for their time.
#include "engine/nvme.h"

#include <algorithm>
#include <cerrno>

namespace vql {

// Is @c, which has ended with an error, to be submitted again? Then it waits for that.
bool nvme_engine::fails_for_now(command& c, uint32_t index, uint32_t status) {
    const int ms =
        vql_nvme_retry_ms(status, c.retries, c.now == command::state::aborted, queue_.crdt);
    if (ms < 0 || c.owner->status != VQL_STATUS_OK) // another command has failed its piece
        return false;
    c.now = command::state::failed;
    c.delay_ms = uint32_t(ms);
    c.since_ns = 0;
    next_generation(c); // a second completion of it is not expected
    c.next = failed_;
    failed_ = int16_t(index);
    retry_at_ = 0; // what time it is, retry() will know
    return true;
}

void nvme_engine::retry(uint64_t now_ns) {
    retry_at_ = never;
    if (lost()) // what comes in its place begins anew
        return;
    int16_t* at = &failed_;
    while (*at >= 0) {
        const auto index = uint32_t(*at);
        command& c = commands_[index];
        if (!c.since_ns)
            c.since_ns = now_ns + uint64_t{c.delay_ms} * 1'000'000;
        if (c.owner->status == VQL_STATUS_OK && now_ns < c.since_ns) {
            retry_at_ = std::min(retry_at_, c.since_ns);
            at = &c.next;
            continue;
        }
        *at = c.next;
        submit_again(c, index);
    }
    serve_waiting();
}

// One entry of the queue is free for it: as many commands as have identifiers fit.
void nvme_engine::submit_again(command& c, uint32_t index) {
    vql_nvme_sqe sqe;
    if (c.owner->status != VQL_STATUS_OK)
        return end_command(c, index, VQL_STATUS_IOERR, EIO);
    if (!say_again(c, index, sqe)) // its memory was taken away
        return end_command(c, index, VQL_STATUS_IOERR, EFAULT);
    queue_.sq[tail_] = sqe;
    c.retries++;
    c.now = command::state::plain;
    c.since_ns = 0;
    move_tail();
}

// As it was made: of the same bytes, and for a bounced write with the very data that was copied.
bool nvme_engine::say_again(const command& c, uint32_t index, vql_nvme_sqe& sqe) const {
    const slot& s = *c.owner;
    const piece& p = s.p;
    const uint32_t block = p.where->block_bytes;
    const bool read = p.op == VQL_OP_READ;
    if (!c.bytes) {
        command_of(s, index, VQL_NVME_FLUSH, sqe);
        return true;
    }
    if (p.op == VQL_OP_DISCARD) {
        say_discard(s, index, c.offset, c.bytes, sqe);
        return true;
    }
    if (p.op == VQL_OP_WRITE_ZEROES)
        return say_zeroes(s, index, c.offset, c.bytes, sqe) == c.bytes;
    command_of(s, index, read ? VQL_NVME_READ : VQL_NVME_WRITE, sqe);
    if (c.bounce >= 0) {
        sqe.data.prp[0] = page_dma(uint32_t(c.bounce));
    } else {
        cursor at = {p.seg, p.skip};
        at.advance(c.offset - p.offset);
        if (build(s, at, index, c.bytes, sqe) != c.bytes)
            return false;
    }
    vql_nvme_blocks(&sqe, c.offset / block, c.bytes / block, read ? 0 : fua(p));
    return true;
}

} // namespace vql
