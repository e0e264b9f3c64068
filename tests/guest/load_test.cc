// SPDX-License-Identifier: GPL-2.0-only
// What many disks cost when they are idle, and how one poller divides itself among busy ones.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr unsigned disks = 64;

std::string name_of(unsigned i) {
    return "d" + std::to_string(i);
}

std::string many_null_disks() {
    std::string config = null_target("null", "1T");
    for (unsigned i = 0; i < disks; i++) {
        config += "[[disk]]\nname = \"" + name_of(i) +
                  "\"\nextents = [ { target = \"null\", offset = \"" + std::to_string(i) +
                  "G\", length = \"1G\" } ]\n";
    }
    return config;
}

std::vector<std::unique_ptr<test_guest>> attach_all(test_daemon& daemon, unsigned depth) {
    guest_options options;
    options.memory_bytes = 2 << 20;
    options.blk.depth = depth;
    options.blk.indirect = false;
    std::vector<std::unique_ptr<test_guest>> guests;
    for (unsigned i = 0; i < disks; i++) {
        guests.push_back(std::make_unique<test_guest>(daemon.socket(name_of(i)), options));
        REQUIRE(guests.back()->driver.flush().status == blk_ok);
    }
    return guests;
}

} // namespace

TEST_CASE("64 attached idle disks cost less than 1 % of a CPU over 10 s", "[load]") {
    if (sanitized_build()) {
        SKIP("CPU time is not measured in a sanitizer build");
    }
    test_daemon daemon(many_null_disks());
    auto guests = attach_all(daemon, 8);
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
    constexpr unsigned depth = 32; // more than the driver takes at one visit, so the poller decides
    test_daemon daemon(many_null_disks());
    auto guests = attach_all(daemon, depth);
    std::vector<uint64_t> done(disks);
    for (unsigned i = 0; i < disks; i++) {
        uint64_t buffer = guests[i]->memory->allocate(4096, 4096);
        for (unsigned n = 0; n < depth; n++) {
            blk_request* request = guests[i]->driver.acquire(0);
            guests[i]->driver.shape(*request, blk_op::read, 8 * n, buffer, 4096);
            REQUIRE(guests[i]->driver.submit(*request));
        }
    }
    for (auto& guest : guests) {
        guest->driver.ring(0);
    }
    // Round robin, equal depth on all: what comes back is submitted again at once.
    deadline until(milliseconds(3000));
    while (!until.passed()) {
        for (unsigned i = 0; i < disks; i++) {
            blk_driver& driver = guests[i]->driver;
            bool any = false;
            for (unsigned n = 0; n < depth / 2; n++) {
                blk_request* request = driver.poll(0);
                if (request == nullptr) {
                    break;
                }
                done[i]++;
                driver.submit(*request);
                any = true;
            }
            if (any) {
                driver.ring(0);
            }
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
    auto stats = daemon.control().result({{"op", "stats"}});
    CHECK(stats.at("pollers").size() == 1);
    for (auto& guest : guests) {
        while (guest->driver.in_flight() != 0) {
            guest->driver.next();
        }
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
    test_guest guest(daemon.socket("d"), options);
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
