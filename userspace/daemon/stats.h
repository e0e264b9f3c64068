// SPDX-License-Identifier: GPL-2.0-only
// Histograms → figures.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vqlane/stats.h>

namespace vql {

// The value below which @fraction (0…1) of what @buckets counts lies, in the unit of @floor, which
// gives a bucket's smallest value; interpolated within the bucket. 0 when nothing was counted.
double percentile(std::span<const __u64> buckets, uint64_t (*floor)(uint32_t), double fraction);

// One operation's figures, and all of a disk's, as the control socket tells them.
nlohmann::json op_figures(const vql_op_stats& s);
nlohmann::json disk_figures(const vql_disk_stats& s);

} // namespace vql
