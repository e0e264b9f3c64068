// SPDX-License-Identifier: GPL-2.0-only
// vqlaned's USDT probes, provider vqlane: what becomes of a request in the poll lane, under the
// names and with the arguments of the module's tracepoints (kmod/trace.h). Each has a semaphore,
// which the kernel raises while somebody is attached; nobody pays for a probe that nobody looks at.
//
// Each probe stands in a function of its own, for those who can attach to a symbol only: bpftool
// (bpf/trace.bpf.c), whose pins the daemon takes for a semaphore (trace_session).
#pragma once

#include <atomic>
#include <vqlane/trace.h>

extern "C" {

// Incremented by the kernel, at any time.
extern volatile unsigned short vqlane_fetch_semaphore;
extern volatile unsigned short vqlane_remap_semaphore;
extern volatile unsigned short vqlane_submit_semaphore;
extern volatile unsigned short vqlane_complete_semaphore;
extern volatile unsigned short vqlane_lane_semaphore;
extern volatile unsigned short vqlane_error_semaphore;

void vql_probe_fetch(const vql_trace_io* io);
void vql_probe_remap(const vql_trace_io* io, __u32 verdict, __u64 target_sector, __u64 sectors);
// A part of the request was taken by an engine. @qid, @cid: of the NVMe command that was made of
// it, the last one of several; 0 where it waits for room in the queue, and for other storage.
void vql_probe_submit(const vql_trace_io* io, __u16 qid, __u16 cid);
void vql_probe_complete(const vql_trace_io* io);
// @from, @to: enum vql_lane_kind, 0 for nobody.
void vql_probe_lane(__u32 slot, __u16 queue, __u8 from, __u8 to, const char* reason);
void vql_probe_error(__u32 slot, __u16 queue, int code, const char* text);

} // extern "C"

namespace vql {

// Set by the control thread while BPF_DIR/trace exists.
inline std::atomic<bool> trace_session{false};

// Does anybody look at a probe? Asked once a round, so that a stage has one branch on the answer.
inline bool traced() {
    return trace_session.load(std::memory_order_relaxed) ||
           (vqlane_fetch_semaphore | vqlane_remap_semaphore | vqlane_submit_semaphore |
            vqlane_complete_semaphore | vqlane_lane_semaphore | vqlane_error_semaphore) != 0;
}

} // namespace vql
