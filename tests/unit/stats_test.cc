// SPDX-License-Identifier: GPL-2.0-only
#include "ring_memory.h"
#include "vqlane/stats.h"

#include <catch2/catch_test_macros.hpp>

using namespace vql::test;

TEST_CASE("stats: a latency lies in its bucket: at its floor or above, below the next", "[stats]") {
    random_source random(1);
    std::vector<uint64_t> samples = {0, 1, 2, 3, UINT64_MAX};
    for (uint32_t bit = 2; bit < 64; bit++)
        for (uint64_t quarter = 4; quarter < 8; quarter++)
            for (uint64_t d : {0u, 1u})
                samples.push_back((quarter << (bit - 2)) - d);
    for (int i = 0; i < 10000; i++)
        samples.push_back(random.any() >> random.between(0, 63));
    for (uint64_t ns : samples) {
        const uint32_t bucket = vql_latency_bucket(ns);
        CAPTURE(ns, bucket);
        if (ns > 0)
            REQUIRE(vql_log2_of_steps(ns) == vql_log2(ns));
        REQUIRE(bucket < VQL_LATENCY_BUCKETS);
        REQUIRE(vql_latency_bucket_floor(bucket) <= ns);
        if (bucket + 1 < VQL_LATENCY_BUCKETS)
            REQUIRE(ns < vql_latency_bucket_floor(bucket + 1));
    }
}

TEST_CASE("stats: latency buckets ascend, are exact below 8 ns and within a quarter above",
          "[stats]") {
    for (uint32_t i = 0; i + 1 < VQL_LATENCY_BUCKETS; i++) {
        const uint64_t floor = vql_latency_bucket_floor(i), next = vql_latency_bucket_floor(i + 1);
        CAPTURE(i, floor, next);
        REQUIRE(floor < next);
        REQUIRE(vql_latency_bucket(floor) == i);
        if (floor < 8)
            REQUIRE(next == floor + 1);
        else
            REQUIRE((next - floor) * 4 <= floor);
    }
    // The range told in the header: the last bucket ends at 2^37 ns.
    CHECK(vql_latency_bucket((1ull << 37) - 1) == VQL_LATENCY_BUCKETS - 1);
    CHECK(vql_latency_bucket_floor(VQL_LATENCY_BUCKETS - 1) == 7ull << 34);
}

TEST_CASE("stats: sizes fall into powers of two from 512 bytes on", "[stats]") {
    CHECK(vql_size_bucket(0) == 0);
    CHECK(vql_size_bucket(512) == 0);
    for (uint32_t i = 1; i < VQL_SIZE_BUCKETS; i++) {
        CAPTURE(i);
        CHECK(vql_size_bucket(512ull << i) == i);
        CHECK(vql_size_bucket((512ull << i) - 1) == i - 1);
    }
    CHECK(vql_size_bucket(UINT64_MAX) == VQL_SIZE_BUCKETS - 1);
    // A whole request of the largest discard has a bucket of its own range.
    CHECK(vql_size_bucket(uint64_t{VQL_MAX_DISCARD_SECTORS} << VQL_SECTOR_SHIFT) == 22);
}
