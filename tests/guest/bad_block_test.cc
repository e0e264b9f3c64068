// SPDX-License-Identifier: GPL-2.0-only
// A drive with bad blocks (tests/vm/host-vm.sh). Hidden: case drive-errors, of tests/vm, has one.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <nlohmann/json.hpp>

namespace vql::guest {
namespace {

constexpr uint64_t bad_bytes = 64 << 20;
constexpr uint64_t unreadable = 2048;
constexpr uint64_t unwritable = 4096;

// What a sector holds whenever it holds something.
void sector_pattern(uint64_t sector, std::byte* at) {
    random_source(sector).fill(std::span(at, sector_bytes));
}

struct bad_request {
    bool write;
    uint64_t first; // sectors
    uint64_t count;
    uint64_t gpa;
    bool fails() const {
        uint64_t bad = write ? unwritable : unreadable;
        return first <= bad && bad < first + count;
    }
};

} // namespace

TEST_CASE("requests that touch a bad block fail, and no others", "[.][drive-errors]") {
    test_daemon daemon(victim_disk(0, bad_bytes));
    test_guest guest(daemon.device("victim0"), two_queue_guest());
    blk_driver& driver = guest.driver;
    random_source random(test_seed(1600));
    constexpr uint64_t most = 2048; // sectors: more than one command carries
    constexpr uint64_t area = 8192;
    std::vector<std::byte> pattern(area * sector_bytes);
    for (uint64_t sector = 0; sector < area; sector++) {
        sector_pattern(sector, &pattern[sector * sector_bytes]);
    }
    auto part = [&](uint64_t first, uint64_t count) {
        return std::span(pattern).subspan(first * sector_bytes, count * sector_bytes);
    };
    for (uint64_t at = 0; at < area; at += most) { // all but the one that cannot be
        REQUIRE(driver.write(at, part(at, at == unwritable ? 0 : most)).status == blk_ok);
    }
    REQUIRE(driver.write(unwritable + 1, part(unwritable + 1, most - 1)).status == blk_ok);
    REQUIRE(driver.write_zeroes({unwritable, 1, 0}).status == blk_ok);
    std::fill_n(pattern.begin() + unwritable * sector_bytes, sector_bytes, std::byte{0});

    std::vector<bad_request> requests(2 * 16);
    for (bad_request& request : requests) {
        request.gpa = guest.memory->allocate(most * sector_bytes, 4096);
    }
    uint64_t failed[2] = {}, done[2] = {};
    uint64_t left = scaled(600, 200);
    auto submit = [&](unsigned queue) {
        blk_request* r = left == 0 ? nullptr : driver.acquire(queue);
        if (r == nullptr) {
            return false;
        }
        left--;
        bad_request& request = requests[queue * 16 + r->token];
        request.write = random.chance(50);
        request.count = random.chance(20) ? most : random.between(1, random.chance(50) ? 8 : 256);
        // About the bad block, at its borders too.
        uint64_t bad = request.write ? unwritable : unreadable;
        request.first = bad - std::min(bad, random.between(0, request.count + 1));
        std::span<std::byte> data = guest.memory->span(request.gpa, request.count * sector_bytes);
        if (request.write) {
            std::memcpy(data.data(), part(request.first, request.count).data(), data.size());
        } else {
            std::memset(data.data(), 0xdb, data.size());
        }
        driver.shape(*r, request.write ? blk_op::write : blk_op::read, request.first, request.gpa,
                     static_cast<uint32_t>(data.size()));
        REQUIRE(driver.submit(*r));
        return true;
    };
    while (left != 0 || driver.in_flight() != 0) {
        for (unsigned queue = 0; queue < 2; queue++) {
            while (submit(queue)) {
            }
            driver.ring(queue);
        }
        blk_request& r = driver.next();
        const bad_request& request = requests[r.queue * 16 + r.token];
        INFO((request.write ? "write of " : "read of ")
             << request.count << " sectors at " << request.first);
        REQUIRE(r.status == (request.fails() ? blk_ioerr : blk_ok));
        if (!request.write && !request.fails()) {
            std::span<std::byte> data =
                guest.memory->span(request.gpa, request.count * sector_bytes);
            REQUIRE(
                std::equal(data.begin(), data.end(), part(request.first, request.count).begin()));
        }
        done[request.write]++;
        failed[request.write] += request.fails() ? 1 : 0;
        driver.release(r);
    }
    CHECK(failed[0] > 20);
    CHECK(failed[1] > 20);
    nlohmann::json ops = daemon.control().result({{"op", "stats"}}).at("disks")[0].at("ops");
    CHECK(ops.at("read").at("errors") == failed[0]);
    CHECK(ops.at("read").at("requests") == done[0]);
    CHECK(ops.at("write").at("errors") == failed[1]);
    if (lane() != "kernel") { // whose words are in the kernel's log
        CHECK(daemon.wait_log("target victim0 ("));
        CHECK(daemon.wait_log("Input/output error"));
    }
}

TEST_CASE("a block that fails once is tried again, and the guest sees no error",
          "[.][drive-errors]") {
    constexpr uint64_t reads = 16384, writes = 32768, step = 512, blocks = 8; // sectors
    test_daemon daemon(victim_disk(0, bad_bytes));
    test_guest guest(daemon.device("victim0"), two_queue_guest());
    std::vector<std::byte> whole(step * sector_bytes), back(whole.size());
    random_source(test_seed(1610)).fill(whole);
    for (uint64_t n = 0; n < blocks; n++) {
        const uint64_t at = reads + n * step, to = writes + n * step;
        INFO("sectors " << at << " and " << to);
        REQUIRE(guest.driver.write(at, whole).status == blk_ok);
        REQUIRE(guest.driver.read(at, back).status == blk_ok); // one of its commands has failed
        CHECK(back == whole);
        REQUIRE(guest.driver.write(to, whole).status == blk_ok); // … and of these
        REQUIRE(guest.driver.read(to, back).status == blk_ok);
        CHECK(back == whole);
    }
    nlohmann::json ops = daemon.control().result({{"op", "stats"}}).at("disks")[0].at("ops");
    CHECK(ops.at("read").at("errors") == 0);
    CHECK(ops.at("write").at("errors") == 0);
}

} // namespace vql::guest
