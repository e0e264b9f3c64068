// SPDX-License-Identifier: GPL-2.0-only
#include "frontend/virtqueue.h"

#include "frontend/blk_device.h"

namespace vql {

result<void> prepare_queue(virtqueue& q, const ring_setup& s, guest_memory& memory,
                           const blk_geometry& geometry) {
    if (!s.desc || !s.avail || !s.used)
        return error{"ring lies outside guest memory"};
    const auto misaligned = [](const uint8_t* p, uintptr_t to) {
        return reinterpret_cast<uintptr_t>(p) % to != 0;
    };
    if (misaligned(s.desc, 16) || misaligned(s.avail, 2) || misaligned(s.used, 4))
        return error{"ring is misaligned"};

    q.ring = {};
    q.ring.desc = reinterpret_cast<const vql_desc*>(s.desc);
    q.ring.avail = reinterpret_cast<vql_avail*>(s.avail);
    q.ring.used = reinterpret_cast<vql_used*>(s.used);
    q.ring.num = uint16_t(s.num);
    q.ring.event_idx = s.features & (1ull << 29);
    q.ring.indirect = s.features & (1ull << 28);
    q.ring.next_avail = s.next_avail;
    q.ring.next_used = vql_load_acquire(&q.ring.used->idx);
    q.ring.signalled = q.answered_to = q.ring.next_used;
    q.limit = virtqueue::no_limit;
    q.resubmit.clear();
    q.inflight = s.record;
    if (q.inflight) {
        q.resubmit = q.inflight.recover(q.ring.next_used);
        std::erase_if(q.resubmit, [&](uint16_t head) { return head >= s.num; });
        // What was answered or is in flight was taken; nobody else may know how far that went.
        if (s.taken_over)
            q.ring.next_avail = uint16_t(q.ring.next_used + q.resubmit.size());
    }
    q.mem = memory.view();
    q.memory = &memory;
    q.disk = blk_disk(geometry, s.features);
    q.durable = blk_durable(s.features, s.writeback);
    return {};
}

} // namespace vql
