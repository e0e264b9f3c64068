// SPDX-License-Identifier: GPL-2.0-only
#include "bench/load.h"
#include "ring_memory.h"

#include <catch2/catch_test_macros.hpp>
#include <cmath>

using namespace vql::test;
using vql::bench::histogram;

namespace {

// Of all sizes: most of a load's are alike, and few are far out.
std::vector<uint64_t> some_times(random_source& random) {
    std::vector<uint64_t> times;
    for (int i = 0; i < 20000; i++)
        times.push_back(random.any() >> random.between(20, 63));
    return times;
}

uint64_t exact(const std::vector<uint64_t>& sorted, double part) {
    const auto wanted = static_cast<size_t>(std::ceil(part * double(sorted.size())));
    return sorted[std::max<size_t>(wanted, 1) - 1];
}

bool within_1_percent(uint64_t is, double should) {
    return std::abs(double(is) - should) <= 1 + 0.01 * should;
}

} // namespace

TEST_CASE("a load's percentiles are within 1 % of the exact ones, in its own unit and in another",
          "[bench]") {
    random_source random(1);
    for (double factor : {1.0, 0.31, 0.5, 2.7}) {
        std::vector<uint64_t> times = some_times(random);
        histogram h;
        double sum = 0;
        for (uint64_t t : times) {
            h.add(t, 1);
            sum += double(t);
        }
        std::sort(times.begin(), times.end());
        const histogram s = h.scaled(factor);
        CHECK(s.total() == times.size());
        for (double part : {0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0}) {
            CAPTURE(factor, part);
            CHECK(within_1_percent(h.percentile(part), double(exact(times, part))));
            CHECK(within_1_percent(s.percentile(part), double(exact(times, part)) * factor));
        }
        CHECK(h.max() == times.back());
        CHECK(std::abs(double(s.max()) - double(times.back()) * factor) <= 1);
        CHECK(std::abs(s.average() * double(times.size()) / factor / sum - 1) < 1e-6);
    }
}

TEST_CASE("a load's histogram holds each time in the bucket that begins at or below it",
          "[bench]") {
    random_source random(2);
    for (int i = 0; i < 10000; i++) {
        const uint64_t t = random.any() >> random.between(1, 63);
        histogram h;
        h.add(t, 3);
        const auto buckets = h.buckets();
        CAPTURE(t);
        REQUIRE(buckets.size() == 1);
        REQUIRE(buckets[0].second == 3);
        REQUIRE(buckets[0].first <= t);
        REQUIRE(t - buckets[0].first <= t / 128);
    }
}
