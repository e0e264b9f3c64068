// SPDX-License-Identifier: GPL-2.0-only
#pragma once

namespace vql {

// What the operator wants of BPF where the kernel refuses it (ebpf/maps.h).
enum class bpf_mode { automatic, required, off };

} // namespace vql
