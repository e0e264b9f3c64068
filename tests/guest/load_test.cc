// SPDX-License-Identifier: GPL-2.0-only
// What many disks cost when they are idle, and how one poller divides itself among busy ones.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace vql::guest {
namespace {

std::string name_of(unsigned i) {
    return "d" + std::to_string(i);
}

std::string many_null_disks(unsigned disks) {
    std::string config = null_target("null", "1T");
    for (unsigned i = 0; i < disks; i++) {
        config += disk_of(name_of(i), "extents = [ { target = \"null\", offset = \"" +
                                          std::to_string(i) + "G\", length = \"1G\" } ]\n");
    }
    return config;
}

std::vector<std::unique_ptr<test_guest>> attach_all(test_daemon& daemon, unsigned disks,
                                                    unsigned depth) {
    guest_options options;
    options.memory_bytes = 4 << 20;
    options.blk.depth = depth;
    std::vector<std::unique_ptr<test_guest>> guests;
    for (unsigned i = 0; i < disks; i++) {
        guests.push_back(std::make_unique<test_guest>(daemon.device(name_of(i)), options));
        REQUIRE(guests.back()->driver.flush().status == blk_ok);
    }
    return guests;
}

} // namespace

TEST_CASE("many attached idle disks cost less than 1 % of a CPU over 10 s", "[load]") {
    if (sanitized_build()) {
        SKIP("CPU time is not measured in a sanitizer build");
    }
    // In the module they take a minute to make and remove; there disk_probe makes as many.
    const unsigned disks = vdpa_world() ? 64 : 256;
    test_daemon daemon(many_null_disks(disks));
    auto guests = attach_all(daemon, disks, 8);
    usleep(500000); // past the adaptive polling
    std::chrono::nanoseconds before = daemon.cpu_time();
    usleep(10000000);
    auto used = std::chrono::duration_cast<std::chrono::microseconds>(daemon.cpu_time() - before);
    INFO("CPU time in 10 s: " << used.count() << " us");
    CHECK(used.count() < 100000);
    // They still answer.
    for (auto& guest : guests) {
        CHECK(guest->driver.flush().status == blk_ok);
    }
}

TEST_CASE("one poller serves 64 busy disks so that none gets less than half its share", "[load]") {
    if (sanitized_build()) {
        SKIP("rates are not measured in a sanitizer build");
    }
    // Long chains that stay in the ring as they are, and are made available again and again: so the
    // poller has far more to do for each than the driver, is never done, and its choice decides.
    // Deep enough that a queue has more when the poller has taken its batch.
    constexpr uint16_t depth = 100;
    constexpr uint16_t pieces = 100;
    constexpr unsigned disks = 64;
    test_daemon daemon(many_null_disks(disks));
    auto guests = attach_all(daemon, disks, depth);
    std::vector<uint16_t> seen(disks);
    for (unsigned i = 0; i < disks; i++) {
        guest_memory& memory = *guests[i]->memory;
        virtqueue_driver& queue = guests[i]->driver.queue(0);
        uint64_t buffer = memory.allocate(sector_bytes * pieces + 17);
        *memory.as<blk_header>(buffer + sector_bytes * pieces) = {0, 0, 8};
        uint64_t tables = memory.allocate(desc_table_bytes(pieces + 2));
        auto* table = memory.as<vring_descriptor>(tables);
        table[0] = {buffer + sector_bytes * pieces, sizeof(blk_header), desc_next, 1};
        for (uint16_t n = 1; n <= pieces; n++) {
            table[n] = {buffer + sector_bytes * (n - 1u), sector_bytes, desc_next | desc_write,
                        static_cast<uint16_t>(n + 1)};
        }
        table[pieces + 1] = {buffer + sector_bytes * pieces + 16, 1, desc_write, 0};
        seen[i] = queue.used_index();
        for (uint16_t head = 0; head < depth; head++) {
            queue.descriptor(head) = {tables, static_cast<uint32_t>(desc_table_bytes(pieces + 2)),
                                      desc_indirect, 0};
            queue.publish_head(head);
        }
    }
    for (auto& guest : guests) {
        guest->driver.queue(0).kick();
    }
    // Round robin, equal depth on all: what comes back is made available at once.
    std::vector<uint64_t> done(disks);
    deadline until(milliseconds(3000));
    while (!until.passed()) {
        for (unsigned i = 0; i < disks; i++) {
            virtqueue_driver& queue = guests[i]->driver.queue(0);
            uint16_t used = queue.used_index();
            if (used == seen[i]) {
                continue;
            }
            done[i] += static_cast<uint16_t>(used - seen[i]);
            for (; seen[i] != used; seen[i]++) {
                queue.publish_head(static_cast<uint16_t>(queue.used_element(seen[i]).id));
            }
            queue.kick_if_wanted();
        }
    }
    uint64_t total = 0;
    for (uint64_t n : done) {
        total += n;
    }
    auto [least, most] = std::minmax_element(done.begin(), done.end());
    INFO("requests in 3 s: " << total << ", least of a disk " << *least << ", most " << *most);
    CHECK(*least >= total / disks / 2);
    CHECK(total > 64 * depth);
    // It was I/O: the last request of each disk ended well.
    for (unsigned i = 0; i < disks; i++) {
        CHECK(guests[i]->driver.queue(0).used_element(static_cast<uint16_t>(seen[i] - 1)).len ==
              sector_bytes * pieces + 1);
    }
}

TEST_CASE("the queues of one disk are spread over the pollers, and each serves", "[load]") {
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2) {
        SKIP("one CPU, so one poller");
    }
    test_daemon daemon("[daemon]\npollers = [0, 1]\n" + null_target("null", "1G") +
                       disk_on("d", "null", "queues = 4\n"));
    guest_options options;
    options.blk.queues = 4;
    test_guest guest(daemon.device("d"), options);
    for (unsigned queue = 0; queue < 4; queue++) {
        for (int i = 0; i < 100; i++) {
            REQUIRE(guest.driver.flush(queue).status == blk_ok);
        }
    }
    auto stats = daemon.control().result({{"op", "stats"}});
    REQUIRE(stats.at("pollers").size() == 2);
    for (const auto& poller : stats.at("pollers")) {
        CHECK(poller.at("requests") == 200);
    }
    auto disk = daemon.control().result({{"op", "disk_list"}}).at(0);
    CHECK(disk.at("queues_running") == 4);
    CHECK(disk.at("connected") == true);
    CHECK(disk.at("pollers").size() == 2);
}

} // namespace vql::guest
