// SPDX-License-Identifier: GPL-2.0-only
// Taking, publishing, and the notify decisions of vring.h.
#include "ring_memory.h"

#include <bitset>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

using namespace vql::test;

TEST_CASE("notify: pending entries are counted over the wrap of the index", "[vring]") {
    test_ring t(8);
    for (uint16_t start : u16s{0, 1, 7, 8, 0x7fff, 0xfff9, 0xffff}) {
        for (uint16_t n = 0; n < 12; n++) {
            CAPTURE(start, n);
            t.ring.next_avail = start;
            t.ring.avail->idx = static_cast<uint16_t>(start + n);
            CHECK(vql_ring_pending(&t.ring) == (n <= 8 ? int{n} : -VQL_RING_BAD_IDX));
        }
        t.ring.avail->idx = static_cast<uint16_t>(start - 1); // an index that moved back
        CHECK(vql_ring_pending(&t.ring) == -VQL_RING_BAD_IDX);
    }
}

TEST_CASE("notify: heads are taken in the order they were offered, over the wrap", "[vring]") {
    test_ring t(4);
    t.ring.avail->idx = t.ring.next_avail = 0xfffd;
    uint16_t offered = 0;
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 3; i++)
            t.offer(offered++);
        REQUIRE(vql_ring_pending(&t.ring) == 3);
        for (int i = 3; i > 0; i--) {
            REQUIRE(vql_ring_peek(&t.ring) == offered - i);
            t.ring.next_avail++;
        }
        REQUIRE(vql_ring_pending(&t.ring) == 0);
    }
}

TEST_CASE("notify: used entries show with publish, a batch at a time, over the wrap", "[vring]") {
    test_ring t(8);
    t.ring.used->idx = t.ring.next_used = 0xfffa;
    uint16_t id = 0;
    for (uint16_t batch : u16s{1, 8, 3, 8, 5, 8}) {
        const uint16_t before = t.ring.used->idx;
        for (uint16_t i = 0; i < batch; i++) {
            vql_ring_push(&t.ring, static_cast<uint16_t>(id + i), 1000u + id + i);
            CHECK(t.ring.used->idx == before); // not yet
        }
        vql_ring_publish(&t.ring);
        REQUIRE(t.ring.used->idx == static_cast<uint16_t>(before + batch));
        for (uint16_t i = 0; i < batch; i++, id++) {
            const vql_used_elem& e = t.ring.used->ring[(before + i) & 7];
            REQUIRE(e.id == id);
            REQUIRE(e.len == 1000u + id);
        }
    }
}

TEST_CASE("notify: passing an event agrees with counting, for every event", "[vring]") {
    random_source random(2);
    std::vector<uint16_t> olds = {0, 1, 2, 0x7ffe, 0x7fff, 0x8000, 0xfffe, 0xffff};
    for (int i = 0; i < 8; i++)
        olds.push_back(static_cast<uint16_t>(random.any()));
    for (uint16_t old : olds) {
        // The model: an event is passed once the index has stepped from it to its successor.
        std::bitset<65536> passed;
        for (uint32_t moved = 0; moved <= 0xffff; moved++) {
            const auto now = static_cast<uint16_t>(old + moved);
            const bool look = moved < 40 || moved > 0xffff - 3 || moved % 8191 == 0;
            for (uint32_t event = 0; look && event < 65536; event++)
                if (vql_event_passed(static_cast<uint16_t>(event), now, old) != passed[event])
                    FAIL("old " << old << " now " << now << " event " << event);
            passed.set(now);
        }
    }
}

TEST_CASE("notify: an interrupt is due when the driver's event was published", "[vring]") {
    const uint16_t start = GENERATE(uint16_t{0}, uint16_t{0xfffe});
    test_ring t(8, true, true);
    t.ring.signalled = t.ring.next_used = t.ring.used->idx = start;
    const auto publish = [&](int n) {
        for (int i = 0; i < n; i++)
            vql_ring_push(&t.ring, 0, 0);
        vql_ring_publish(&t.ring);
        return vql_ring_should_interrupt(&t.ring);
    };
    t.used_event() = start; // the very next one
    CHECK(publish(1));
    CHECK_FALSE(publish(1)); // the driver has not moved its event
    t.used_event() = static_cast<uint16_t>(start + 4);
    CHECK_FALSE(publish(2)); // entries 2, 3
    CHECK(publish(1));       // entry 4
    t.used_event() = static_cast<uint16_t>(start + 7);
    CHECK(publish(8));                               // 5…12, in one batch
    CHECK_FALSE(vql_ring_should_interrupt(&t.ring)); // nothing new: nothing to tell
    t.ring.avail->flags = VQL_AVAIL_F_NO_INTERRUPT;  // meaningless with EVENT_IDX
    t.used_event() = static_cast<uint16_t>(start + 13);
    CHECK(publish(1));
}

TEST_CASE("notify: several publishes between two decisions count together", "[vring]") {
    test_ring t(8, true, true);
    t.used_event() = 1;
    for (int i = 0; i < 4; i++) {
        vql_ring_push(&t.ring, 0, 0);
        vql_ring_publish(&t.ring);
    }
    CHECK(vql_ring_should_interrupt(&t.ring));
    CHECK(t.ring.signalled == 4);
}

TEST_CASE("notify: without EVENT_IDX the driver's flag decides", "[vring]") {
    test_ring t(8);
    t.used_event() = 0x5555; // not looked at
    for (uint16_t flags : u16s{0, 1, 2, 3}) {
        CAPTURE(flags);
        t.ring.avail->flags = flags;
        vql_ring_push(&t.ring, 0, 0);
        vql_ring_publish(&t.ring);
        CHECK(vql_ring_should_interrupt(&t.ring) == !(flags & VQL_AVAIL_F_NO_INTERRUPT));
        CHECK_FALSE(vql_ring_should_interrupt(&t.ring));
    }
}

TEST_CASE("notify: the driver's wish holds from the first entry published", "[vring]") {
    const bool event_idx = GENERATE(false, true);
    const bool wanted = GENERATE(false, true);
    const uint16_t start = GENERATE(uint16_t{0}, uint16_t{0xffff});
    test_ring t(8, true, event_idx);
    t.ring.signalled = t.ring.next_used = t.ring.used->idx = start;
    t.ring.avail->flags = wanted ? 0 : VQL_AVAIL_F_NO_INTERRUPT;
    t.used_event() = static_cast<uint16_t>(wanted ? start : start + 0x4000);
    CHECK_FALSE(vql_ring_should_interrupt(&t.ring)); // nothing published: not its to say
    vql_ring_push(&t.ring, 0, 0);
    vql_ring_publish(&t.ring);
    CHECK(vql_ring_should_interrupt(&t.ring) == wanted);
    CHECK_FALSE(vql_ring_should_interrupt(&t.ring));
}

TEST_CASE("notify: arm asks for the next entry and tells of entries already there", "[vring]") {
    const bool event_idx = GENERATE(false, true);
    const uint16_t start = GENERATE(uint16_t{0}, uint16_t{0xffff});
    test_ring t(8, true, event_idx);
    // Does the driver kick for what it just offered? virtio 1.3 §2.7.10, from the driver's side.
    const auto kicks = [&](uint16_t offered) {
        const uint16_t now = t.ring.avail->idx;
        return event_idx
                   ? vql_event_passed(t.avail_event(), now, static_cast<uint16_t>(now - offered))
                   : !(t.ring.used->flags & VQL_USED_F_NO_NOTIFY);
    };
    t.ring.avail->idx = t.ring.next_avail = start;
    CHECK_FALSE(vql_ring_arm(&t.ring));
    t.offer(0);
    CHECK(kicks(1));
    CHECK(vql_ring_arm(&t.ring)); // not taken yet: serve, don't sleep
    vql_ring_disarm(&t.ring);
    t.ring.next_avail++;
    t.offer(0);
    t.offer(0);
    CHECK_FALSE(kicks(2));
    t.ring.next_avail = static_cast<uint16_t>(t.ring.next_avail + 2);
    CHECK_FALSE(vql_ring_arm(&t.ring));
    t.offer(0);
    t.offer(0);
    CHECK(kicks(2)); // in one batch: the event is its first entry
}
