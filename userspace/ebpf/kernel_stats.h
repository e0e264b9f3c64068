// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include "ebpf/maps.h"

namespace vql {

// Have the requests of the kernel lane counted in value VQL_STATS_LANE of their disks' maps
// (bpf/stats.bpf.c). The module is loaded. The program stays until the last disk has ended:
// bpf_maps removes its pin. One of an earlier daemon goes on, so that none is missed. Nothing to do
// without BPF maps.
result<void> attach_kernel_stats(const bpf_maps& maps);

} // namespace vql
