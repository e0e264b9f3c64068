// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/stats.h"

#include "base/histogram.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <vqlane/barrier.h>

namespace vql {

namespace {

uint64_t size_floor(uint32_t i) {
    return 512ull << i;
}

uint64_t rounded(double d) {
    return uint64_t(d + 0.5);
}

} // namespace

void add_stats(vql_disk_stats& sum, const vql_disk_stats& more) {
    std::array<__u64, VQL_OP_COUNT> max{};
    for (size_t op = 0; op < max.size(); op++)
        max[op] = std::max(sum.op[op].max_ns, vql_read_once(&more.op[op].max_ns));
    auto* to = reinterpret_cast<__u64*>(&sum);
    const auto* from = reinterpret_cast<const __u64*>(&more);
    for (size_t i = 0; i < sizeof(sum) / sizeof(__u64); i++)
        to[i] += vql_read_once(&from[i]);
    for (size_t op = 0; op < max.size(); op++) // all words are sums but the maxima
        sum.op[op].max_ns = max[op];
}

nlohmann::json op_figures(const vql_op_stats& s, bool histogram) {
    const auto at = [&](double fraction) { // no figure is beyond the largest one seen
        return std::min<uint64_t>(rounded(percentile(s.latency, latency_floor, fraction)),
                                  s.max_ns);
    };
    nlohmann::json figures = {{"requests", s.count},
                              {"bytes", s.bytes},
                              {"errors", s.errors},
                              {"bounced_bytes", s.bounced},
                              {"total_ns", s.total_ns},
                              {"latency_ns",
                               {{"avg", s.count ? s.total_ns / s.count : 0},
                                {"p50", at(0.5)},
                                {"p99", at(0.99)},
                                {"p999", at(0.999)},
                                {"max", s.max_ns}}},
                              {"size_bytes",
                               {{"p50", rounded(percentile(s.size, size_floor, 0.5))},
                                {"p99", rounded(percentile(s.size, size_floor, 0.99))}}}};
    if (histogram)
        figures["latency_buckets"] = s.latency;
    return figures;
}

nlohmann::json disk_figures(const vql_disk_stats& s, bool histograms) {
    static constexpr std::array names = {"read",         "write",  "flush", "discard",
                                         "write_zeroes", "get_id", "other"};
    static_assert(names.size() == VQL_OP_COUNT);
    nlohmann::json ops;
    for (size_t i = 0; i < names.size(); i++)
        ops[names[i]] = op_figures(s.op[i], histograms && s.op[i].count);
    return ops;
}

} // namespace vql
