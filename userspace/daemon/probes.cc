// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/probes.h"

#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>

// In the section that tools and the kernel expect semaphores in.
#define VQL_SEMAPHORE __attribute__((section(".probes")))
volatile unsigned short vqlane_fetch_semaphore VQL_SEMAPHORE;
volatile unsigned short vqlane_remap_semaphore VQL_SEMAPHORE;
volatile unsigned short vqlane_submit_semaphore VQL_SEMAPHORE;
volatile unsigned short vqlane_complete_semaphore VQL_SEMAPHORE;
volatile unsigned short vqlane_lane_semaphore VQL_SEMAPHORE;
volatile unsigned short vqlane_error_semaphore VQL_SEMAPHORE;

// A symbol, with its arguments where the calling convention has them.
#define VQL_PROBE __attribute__((noinline, used))
// Probe and symbol must not be at one address: the kernel refuses a uprobe with a semaphore where
// one without is.
#define VQL_APART() asm volatile("nop")

VQL_PROBE void vql_probe_fetch(const vql_trace_io* io) {
    VQL_APART();
    STAP_PROBE1(vqlane, fetch, io);
}

VQL_PROBE void vql_probe_remap(const vql_trace_io* io, __u32 verdict, __u64 target_sector,
                               __u64 sectors) {
    VQL_APART();
    STAP_PROBE4(vqlane, remap, io, verdict, target_sector, sectors);
}

VQL_PROBE void vql_probe_submit(const vql_trace_io* io, __u16 qid, __u16 cid) {
    VQL_APART();
    STAP_PROBE3(vqlane, submit, io, qid, cid);
}

VQL_PROBE void vql_probe_complete(const vql_trace_io* io) {
    VQL_APART();
    STAP_PROBE1(vqlane, complete, io);
}

VQL_PROBE void vql_probe_lane(__u32 slot, __u16 queue, __u8 from, __u8 to, const char* reason) {
    VQL_APART();
    STAP_PROBE5(vqlane, lane, slot, queue, from, to, reason);
}

VQL_PROBE void vql_probe_error(__u32 slot, __u16 queue, int code, const char* text) {
    VQL_APART();
    STAP_PROBE4(vqlane, error, slot, queue, code, text);
}
