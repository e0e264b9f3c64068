// SPDX-License-Identifier: GPL-2.0-only
// What a poller does more while somebody traces it: the times of a request's stages, and the
// probes. Called only where tracing_ is set.
#include "daemon/poller.h"
#include "daemon/probes.h"

#include <cerrno>

namespace vql {

// Was the request begun while it was traced? Otherwise its trace is an older one's.
bool poller::has_trace(const request& r) {
    return r.trace.fetched == r.start_ns;
}

void poller::begin_trace(request& r) {
    r.trace = {};
    r.trace.slot = r.queue->slot;
    r.trace.queue = uint16_t(r.queue->vq->index);
    r.trace.head = r.head;
    r.trace.op = r.io.op;
    r.trace.lane = VQL_LANE_POLL;
    r.trace.sector = r.io.sector;
    r.trace.bytes = r.io.bytes;
    r.trace.fetched = r.start_ns;
}

void poller::trace_fetch(request& r) {
    begin_trace(r);
    vql_probe_fetch(&r.trace);
}

void poller::trace_remap(request& r, const vql_remap& to) {
    if (!has_trace(r))
        return;
    if (!r.trace.remapped) {
        r.trace.remapped = clock_ns();
        r.trace.target = to.target;
    }
    vql_probe_remap(&r.trace, to.verdict, to.sector, to.sectors);
}

void poller::trace_submit(request& r, const target& t) const {
    if (!has_trace(r))
        return;
    r.trace.submitted = clock_ns();
    std::pair<uint16_t, uint16_t> command;
    if (t.kind == target_kind::nvme)
        command = nvme_[t.controller]->engine.last_command(&r);
    vql_probe_submit(&r.trace, command.first, command.second);
}

void poller::trace_part_done(request& r, vql_status status) {
    if (has_trace(r))
        r.trace.device_done = clock_ns();
    if (status == VQL_STATUS_IOERR)
        trace_error(*r.queue, -EIO, "I/O error");
}

void poller::trace_answer(request& r) {
    if (!has_trace(r))
        begin_trace(r);
    r.trace.status = r.io.status;
}

// All that this round answered: published, and given back, but not yet used again. Their queues may
// be somebody else's by now.
void poller::trace_complete() {
    const uint64_t now = clock_ns();
    for (size_t i = 0; i < done_count_; i++) {
        done_[i]->trace.completed = now;
        vql_probe_complete(&done_[i]->trace);
    }
}

void poller::trace_lane(const served_queue& q, vql_lane_kind from, vql_lane_kind to,
                        const char* reason) {
    vql_probe_lane(q.slot, uint16_t(q.vq->index), uint8_t(from), uint8_t(to), reason);
}

void poller::trace_error(const served_queue& q, int code, const char* text) {
    vql_probe_error(q.slot, uint16_t(q.vq->index), code, text);
}

} // namespace vql
