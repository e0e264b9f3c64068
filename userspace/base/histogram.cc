// SPDX-License-Identifier: GPL-2.0-only
#include "base/histogram.h"

namespace vql {

double percentile(std::span<const __u64> buckets, uint64_t (*floor)(uint32_t), double fraction) {
    uint64_t total = 0;
    for (const __u64 n : buckets)
        total += n;
    if (!total)
        return 0;
    const double wanted = fraction * double(total);
    double below = 0;
    for (uint32_t i = 0; i < buckets.size(); i++) {
        const auto here = double(buckets[i]);
        if (here > 0 && below + here >= wanted) {
            const auto low = double(floor(i)), high = double(floor(i + 1));
            return low + (high - low) * (wanted - below) / here;
        }
        below += here;
    }
    return double(floor(uint32_t(buckets.size())));
}

uint64_t latency_floor(uint32_t bucket) {
    return vql_latency_bucket_floor(bucket);
}

} // namespace vql
