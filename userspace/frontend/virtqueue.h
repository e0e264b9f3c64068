// SPDX-License-Identifier: GPL-2.0-only
// What a front end gives a poller: one virtqueue, ready to be served.
//
// Ownership moves as a whole. While a queue runs, its poller alone touches it; before and after,
// the control thread does. The hand-over goes through the poller's mailbox and the event loop's,
// whose locks order everything that was written before.
#pragma once

#include "base/fd.h"
#include "base/result.h"
#include "frontend/blk_device.h"
#include "frontend/dirty_log.h"
#include "frontend/guest_memory.h"
#include "frontend/inflight.h"

#include <cstdint>
#include <functional>
#include <vector>
#include <vqlane/blk.h>
#include <vqlane/remap.h>
#include <vqlane/vring.h>

namespace vql {

// What a disk's policy has to say of a piece of a request.
struct policy_answer {
    vql_remap to{};                    // VQL_USER: as the extent table says
    uint8_t status = VQL_STATUS_IOERR; // of VQL_REFUSE
};

struct virtqueue {
    uint32_t index = 0;
    vql_ring ring{};
    vql_mem mem{};        // a view of memory's regions, with this queue's own hint
    vql_blk_disk disk{};  // capacity and what the driver negotiated
    bool durable = false; // write-through: no request is done before it is on stable storage

    guest_memory* memory = nullptr; // the session's; outlives the running queue
    inflight_queue inflight;        // empty when not negotiated
    dirty_log* log = nullptr;       // set while the guest's writes are to be logged
    uint64_t used_log_guest = 0;    // guest address of the used ring, for the log
    bool log_used = false;

    unique_fd kick; // eventfds; kick may be absent: then the queue is polled
    unique_fd call;
    unique_fd err;

    // So many requests are taken from the ring, and then the poller tells that it is through (as it
    // does at 0 when all is resubmitted). no_limit: for ever.
    static constexpr uint32_t no_limit = UINT32_MAX;
    uint32_t limit = no_limit;

    // Decides, in place of the extent table, where a request's next @sectors go; none: the table
    // does. Called by the poller, and slow.
    std::function<policy_answer(vql_op op, uint64_t sector, uint64_t sectors)> policy;

    std::vector<uint16_t> resubmit; // heads that were in flight when an earlier daemon died

    // Answered by pollers, ever: the poller writes, once a batch, and the control thread reads.
    __u64 answered = 0;
    uint16_t answered_to = 0; // the poller's: as of this used index

    // Set by the poller when the driver broke the ring, in which case it serves it no more; reset
    // by the control thread while no poller has the queue. What the poller posts of it may come
    // when the queue has been set up and started anew, so the control thread reads it as what may
    // be written just then.
    int ring_error = 0; // enum vql_ring_error
};

// How a driver has set up a queue.
struct ring_setup {
    // The ring's parts in this process, or null where one lies outside guest memory, or the used
    // ring in memory that the device may not write.
    uint8_t* desc = nullptr;
    uint8_t* avail = nullptr;
    uint8_t* used = nullptr;
    uint32_t num = 0;        // valid: see vql_queue_size_valid()
    uint16_t next_avail = 0; // where the device goes on in the available ring
    uint64_t features = 0;   // as negotiated
    bool writeback = false;  // the driver's wish (VIRTIO_BLK_F_CONFIG_WCE)
    inflight_queue record;   // of at least num entries, or none
    bool taken_over = false; // next_avail may be old: what the record and the used ring say counts
};

// Make @q ready to run, but for its descriptors and its log. It begins with what an earlier daemon
// left in flight. Refused: a ring that is not where it may be.
result<void> prepare_queue(virtqueue& q, const ring_setup& s, guest_memory& memory,
                           const blk_geometry& geometry);

} // namespace vql
