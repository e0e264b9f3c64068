// SPDX-License-Identifier: GPL-2.0-only
// Figures from counted buckets.
#pragma once

#include <cstdint>
#include <span>
#include <vqlane/stats.h>

namespace vql {

// The value below which @fraction (0…1) of what @buckets counts lies, in the unit of @floor, which
// gives a bucket's smallest value; interpolated within the bucket. 0 when nothing was counted.
double percentile(std::span<const __u64> buckets, uint64_t (*floor)(uint32_t), double fraction);

// vql_latency_bucket_floor() as percentile() takes it.
uint64_t latency_floor(uint32_t bucket);

} // namespace vql
