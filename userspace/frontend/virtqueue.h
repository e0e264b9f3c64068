// SPDX-License-Identifier: GPL-2.0-only
// What a front end gives a poller: one virtqueue, ready to be served.
//
// Ownership moves as a whole. While a queue runs, its poller alone touches it; before and after,
// the control thread does. The hand-over goes through the poller's mailbox and the event loop's,
// whose locks order everything that was written before.
#pragma once

#include "base/fd.h"
#include "frontend/dirty_log.h"
#include "frontend/guest_memory.h"
#include "frontend/inflight.h"

#include <cstdint>
#include <vector>
#include <vqlane/blk.h>
#include <vqlane/vring.h>

namespace vql {

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

    std::vector<uint16_t> resubmit; // heads that were in flight when an earlier daemon died

    // Set by the poller when the driver broke the ring, in which case it serves it no more.
    int ring_error = 0; // enum vql_ring_error
};

} // namespace vql
