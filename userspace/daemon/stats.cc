// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/stats.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

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

namespace {

uint64_t latency_floor(uint32_t i) {
    return vql_latency_bucket_floor(i);
}
uint64_t size_floor(uint32_t i) {
    return 512ull << i;
}

uint64_t rounded(double d) {
    return uint64_t(d + 0.5);
}

} // namespace

nlohmann::json op_figures(const vql_op_stats& s) {
    const auto at = [&](double fraction) { // no figure is beyond the largest one seen
        return std::min<uint64_t>(rounded(percentile(s.latency, latency_floor, fraction)),
                                  s.max_ns);
    };
    return {{"count", s.count},
            {"bytes", s.bytes},
            {"errors", s.errors},
            {"bounced_bytes", s.bounced},
            {"latency_ns",
             {{"avg", s.count ? s.total_ns / s.count : 0},
              {"p50", at(0.5)},
              {"p99", at(0.99)},
              {"p999", at(0.999)},
              {"max", s.max_ns}}},
            {"size_bytes",
             {{"p50", rounded(percentile(s.size, size_floor, 0.5))},
              {"p99", rounded(percentile(s.size, size_floor, 0.99))}}}};
}

nlohmann::json disk_figures(const vql_disk_stats& s) {
    static constexpr std::array names = {"read",         "write",  "flush", "discard",
                                         "write_zeroes", "get_id", "other"};
    static_assert(names.size() == VQL_OP_COUNT);
    nlohmann::json ops;
    for (size_t i = 0; i < names.size(); i++)
        ops[names[i]] = op_figures(s.op[i]);
    return ops;
}

} // namespace vql
