// SPDX-License-Identifier: GPL-2.0-only
// What the front ends share, and what the kernel module's absence looks like. The rest of them
// needs a VMM (tests/guest/) or the module (tests/vm/).
#include "base/kmod.h"
#include "frontend/frontend.h"
#include "frontend/inflight.h"
#include "frontend/lane.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <unistd.h>

using namespace vql;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr uint32_t num = 8;
constexpr uint64_t guest = 0x40000000, vmm = 0x7000'0000'0000, bytes = 0x10000;

// A guest's memory with a ring at its beginning, and the record of its device's queues.
struct guest_with_ring {
    guest_memory memory;
    inflight_region record;
    const uint8_t* record_bytes = nullptr;
    virtqueue vq;
    blk_geometry geometry;
    ring_setup setup;

    explicit guest_with_ring(uint32_t queues = 1) {
        unique_fd fd(memfd_create("guest", MFD_CLOEXEC));
        REQUIRE(ftruncate(fd.get(), bytes) == 0);
        REQUIRE(memory.add({guest, bytes, vmm, 0}, fd));
        mapping map =
            mapping::map(-1, queues * VQL_INFLIGHT_BYTES(num), MAP_PRIVATE | MAP_ANONYMOUS);
        record_bytes = map.data();
        const auto adopted = record.adopt(std::move(map), queues, num);
        REQUIRE(adopted);
        setup.desc = memory.from_guest(guest, vql_desc_bytes(num), false);
        setup.avail = memory.from_guest(guest + 0x1000, vql_avail_bytes(num), false);
        setup.used = memory.from_guest(guest + 0x2000, vql_used_bytes(num), true);
        setup.num = num;
        setup.record = record.queue(0);
    }
    void used_index(uint16_t idx) { reinterpret_cast<vql_used*>(setup.used)->idx = idx; }
    result<void> prepare() { return prepare_queue(vq, setup, memory, geometry); }
};

} // namespace

TEST_CASE("frontend: a queue goes on where it was told, when nobody died", "[frontend]") {
    guest_with_ring g;
    g.used_index(40);
    g.setup.next_avail = 41; // not what the used ring says
    REQUIRE(g.prepare());
    CHECK(g.vq.ring.next_avail == 41);
    CHECK(g.vq.ring.next_used == 40);
    CHECK(g.vq.ring.signalled == 40); // the driver's wishes hold from the first one published
    CHECK(g.vq.resubmit.empty());
}

TEST_CASE("frontend: a queue that is taken over begins with what was in flight", "[frontend]") {
    guest_with_ring g;
    g.used_index(100);
    REQUIRE(g.prepare());
    inflight_queue earlier = g.vq.inflight;
    for (const uint16_t head : std::vector<uint16_t>{5, 2, 7, 0})
        earlier.take(head);
    // One was answered, and death came between the used index and the record.
    earlier.push(2);
    g.used_index(101);

    g.setup.taken_over = true;
    g.setup.next_avail = 9; // old
    REQUIRE(g.prepare());
    CHECK(g.vq.resubmit == std::vector<uint16_t>{5, 7, 0}); // in the order they were taken
    CHECK(g.vq.ring.next_used == 101);
    CHECK(g.vq.ring.next_avail == 104);

    SECTION("and once more, when they were not even taken again") {
        REQUIRE(g.prepare());
        CHECK(g.vq.resubmit == std::vector<uint16_t>{5, 7, 0});
        CHECK(g.vq.ring.next_avail == 104);
    }
    SECTION("also when it is told where to go on: that counts what is in flight as taken") {
        g.setup.taken_over = false;
        g.setup.next_avail = 104;
        REQUIRE(g.prepare());
        CHECK(g.vq.resubmit == std::vector<uint16_t>{5, 7, 0});
        CHECK(g.vq.ring.next_avail == 104);
    }
}

TEST_CASE("frontend: each queue has its own part of the record, where the module has it",
          "[frontend]") {
    guest_with_ring g(3);
    for (uint32_t i = 0; i < 3; i++) {
        inflight_queue q = g.record.queue(i);
        q.recover(0);
        q.take(uint16_t(i));
    }
    for (uint32_t i = 0; i < 3; i++) {
        CHECK(g.record.queue(i).recover(0) == std::vector<uint16_t>{uint16_t(i)});
        const uint8_t* part = g.record_bytes + i * VQL_INFLIGHT_BYTES(num);
        CHECK(reinterpret_cast<const inflight_header*>(part)->version == 1);
        CHECK(reinterpret_cast<const inflight_desc*>(part + sizeof(inflight_header))[i].inflight);
    }
    CHECK_FALSE(g.record.queue(3));
}

TEST_CASE("frontend: a ring outside memory, or misaligned, is refused", "[frontend]") {
    guest_with_ring g;
    uint8_t* ring_setup::*const parts[] = {&ring_setup::desc, &ring_setup::avail,
                                           &ring_setup::used};
    for (auto part : parts) {
        uint8_t* const good = g.setup.*part;
        g.setup.*part = nullptr;
        CHECK_FALSE(g.prepare());
        g.setup.*part = good + 1;
        CHECK_FALSE(g.prepare());
        g.setup.*part = good;
    }
    CHECK(g.prepare());
    CHECK(g.memory.from_guest(guest + bytes - 1, 1, true));
    CHECK_FALSE(g.memory.from_guest(guest + bytes - 1, 2, true));
    CHECK_FALSE(g.memory.from_guest(vmm, 1, true));
}

TEST_CASE("kmod: errors say what to do", "[kmod]") {
    std::string folder = "/tmp/vql-kmod-XXXXXX";
    REQUIRE(mkdtemp(folder.data()));
    SECTION("the module is not loaded") {
        CHECK_THAT(kmod_control::open(folder).failure().text, ContainsSubstring("modprobe vqlane"));
        CHECK_THAT(kmod_ctrl::open("0000:01:00.0", folder).failure().text,
                   ContainsSubstring("modprobe vqlane"));
    }
    SECTION("the controller is not bound to it; what is there is not the module") {
        std::ofstream(folder + "/control") << "";
        CHECK_THAT(kmod_ctrl::open("0000:01:00.0", folder).failure().text,
                   ContainsSubstring("vqlane device bind 0000:01:00.0"));
        const auto opened = kmod_control::open(folder);
        REQUIRE_FALSE(opened);
        CHECK_THAT(opened.failure().text,
                   ContainsSubstring("version " + std::to_string(VQL_ABI_VERSION)));
    }
    std::filesystem::remove_all(folder);
}

TEST_CASE("lane_choice: the kernel's after two quiet seconds in a row, ours at once", "[lane]") {
    constexpr uint32_t demote = 100;
    lane_choice choice;
    CHECK(choice.kernel()); // a new queue has done nothing yet
    choice.promote();
    CHECK_FALSE(choice.kernel());
    choice.tick(demote, demote);
    CHECK_FALSE(choice.kernel());
    choice.tick(demote + 1, demote); // not in a row
    choice.tick(0, demote);
    CHECK_FALSE(choice.kernel());
    choice.tick(demote, demote);
    CHECK(choice.kernel());
    choice.tick(demote + 1, demote); // busy before anybody lent it
    CHECK_FALSE(choice.kernel());
    choice.tick(0, demote);
    choice.promote(); // what was quiet before counts no more
    choice.tick(0, demote);
    CHECK_FALSE(choice.kernel());
    choice.tick(0, demote);
    CHECK(choice.kernel());
}
