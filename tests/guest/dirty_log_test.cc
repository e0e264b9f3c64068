// SPDX-License-Identifier: GPL-2.0-only
// Dirty logging for live migration: every page that the device writes is marked, and no other.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>
#include <set>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 16 << 20;

using pages = std::set<uint64_t>;

void add_pages(pages& set, uint64_t gpa, uint64_t bytes) {
    for (uint64_t page = gpa / log_page_bytes;
         bytes != 0 && page <= (gpa + bytes - 1) / log_page_bytes; page++) {
        set.insert(page);
    }
}

bool contains(const pages& all, const pages& some) {
    return std::includes(all.begin(), all.end(), some.begin(), some.end());
}

std::string text_of(const pages& set) {
    std::string text;
    for (uint64_t page : set) {
        text += " " + std::to_string(page);
    }
    return text;
}

// A guest whose device logs, and the log.
struct logged_guest {
    vhost_user_only skip{"only vhost-user logs dirty pages"};
    temporary_directory files{"/dev/shm"};
    std::unique_ptr<test_daemon> daemon;
    std::unique_ptr<test_guest> guest;
    unique_fd log_file;
    unique_fd log_event = make_eventfd(); // the daemon may signal it, or not
    mapping log;
    uint64_t used_shift; // where the used ring is logged, beside where it is

    explicit logged_guest(bool log_used_rings, uint64_t used_ring_shift = 0)
        : used_shift(used_ring_shift) {
        make_file(files / "image", disk_bytes);
        daemon = std::make_unique<test_daemon>(file_target("t", files / "image") +
                                               disk_on("d", "t", "queues = 2\n"));
        guest_options options;
        options.slots = 4;
        options.memory_base = 1 << 20;
        options.memory_bytes = 32 << 20;
        options.blk.queues = 2;
        options.blk.depth = 32;
        options.vhost.log_used_rings = log_used_rings;
        options.vhost.protocol_features = ~bit(vu_feature_inflight_shmfd);
        guest = std::make_unique<test_guest>(daemon->socket("d"), options);
        set_log(log_bytes_for(guest->memory->end() + used_shift));
        // QEMU's order when a migration starts: log, features, ring addresses, all while it runs.
        log_all(true);
        for (unsigned q = 0; q < 2; q++) {
            vu_vring_addr addr = guest->vhost_user().vring_addr(q, guest->driver.queue(q).setup(0));
            addr.log += used_shift;
            guest->vhost_user().client().set_vring_addr(addr);
        }
        clear();
    }

    static uint64_t log_bytes_for(uint64_t end) {
        uint64_t bytes = end / log_page_bytes / 8 + 8;
        return (bytes + log_page_bytes - 1) / log_page_bytes * log_page_bytes;
    }
    void set_log(uint64_t bytes) {
        // Not at the beginning of its file.
        log_file = make_memfd("log", bytes + 8192);
        log = mapping(log_file.get(), bytes + 8192);
        guest->vhost_user().client().set_log_base(bytes, 4096, log_file.get());
        guest->vhost_user().client().set_log_fd(log_event.get());
    }
    void log_all(bool on) {
        guest->vhost_user().client().set_features(guest->driver.features() | bit(feature_protocol) |
                                                  (on ? bit(feature_log_all) : 0));
    }
    void clear() { std::fill(log.bytes().begin(), log.bytes().end(), std::byte{0}); }
    pages marked() const {
        pages set;
        std::span<const std::byte> bytes = log.bytes();
        for (size_t i = 0; i < bytes.size(); i++) {
            for (unsigned b = 0; b < 8; b++) {
                if ((bytes[i] >> b & std::byte{1}) != std::byte{0}) {
                    // Outside [4096, size - 4096) it is not the log: no such page.
                    bool in_log = i >= 4096 && i < bytes.size() - 4096;
                    set.insert(in_log ? (i - 4096) * 8 + b : ~uint64_t{0});
                }
            }
        }
        return set;
    }
    vring_setup ring(unsigned q) { return guest->driver.queue(q).setup(0); }
};

// What the device must write for a request that it answers with OK.
pages written_by(const blk_request& request) {
    pages set;
    bool data = request.type == static_cast<uint32_t>(blk_op::read) ||
                request.type == static_cast<uint32_t>(blk_op::get_id);
    uint64_t left = data ? request.data_in : 0;
    for (const segment& piece : request.parts()) {
        if (piece.device_writes) {
            uint64_t bytes = std::min<uint64_t>(piece.bytes, left);
            add_pages(set, piece.gpa, bytes);
            left -= bytes;
        }
    }
    add_pages(set, request.status_gpa, 1);
    return set;
}

} // namespace

TEST_CASE("one request marks the pages of its data, its status and the used ring, and no other",
          "[dirty-log]") {
    bool log_used = GENERATE(false, true);
    uint64_t shift = GENERATE(uint64_t{0}, uint64_t{64} << 20);
    INFO("used ring logged: " << log_used << ", at a distance of " << shift);
    logged_guest setup(log_used, shift);
    blk_driver& driver = setup.guest->driver;
    guest_memory& memory = *setup.guest->memory;
    uint64_t data = memory.allocate(16 * log_page_bytes, log_page_bytes);
    uint64_t status = memory.allocate(log_page_bytes, log_page_bytes);
    pages used;
    // Either ring: queue 1 may just ask for a kick, as it falls asleep.
    for (unsigned q = 0; q < 2; q++) {
        add_pages(used, setup.ring(q).used + shift, used_ring_bytes(setup.ring(q).size));
    }
    struct {
        const char* what;
        blk_op op;
        uint64_t sector;
        uint64_t gpa;
        uint32_t bytes;
        std::set<uint64_t> data_pages; // from the first of `data`
    } const table[] = {
        {"read of two pages", blk_op::read, 0, data, 8192, {0, 1}},
        {"read across a border of pages", blk_op::read, 0, data + 4096 - 512, 1024, {0, 1}},
        {"read within one page", blk_op::read, 0, data + 4096, 4096, {1}},
        {"misaligned read", blk_op::read, 0, data + 3 * 4096 - 1, 4608, {2, 3, 4}},
        {"read of 64 KiB",
         blk_op::read,
         0,
         data,
         65536,
         {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}},
        {"write", blk_op::write, 0, data, 8192, {}},
        {"flush", blk_op::flush, 0, 0, 0, {}},
        {"serial number", blk_op::get_id, 0, data + 4096 - 10, 20, {0, 1}},
        {"write beyond the end", blk_op::write, disk_bytes / 512, data, 8192, {}},
        {"read beyond the end", blk_op::read, disk_bytes / 512, data, 8192, {}},
    };
    for (const auto& odd : table) {
        INFO(odd.what);
        setup.clear();
        blk_request* request = driver.acquire(0);
        driver.shape(*request, odd.op, odd.sector, odd.gpa, odd.bytes);
        request->status_gpa = status + 100;
        request->chain[request->segments - 1u].gpa = status + 100;
        driver.execute(*request);
        pages expected;
        for (uint64_t page : odd.data_pages) {
            expected.insert(data / log_page_bytes + page);
        }
        expected.insert(status / log_page_bytes);
        pages marked = setup.marked();
        INFO("expected" << text_of(expected) << ", used rings" << text_of(used) << ", marked"
                        << text_of(marked));
        pages marked_used;
        std::set_intersection(marked.begin(), marked.end(), used.begin(), used.end(),
                              std::inserter(marked_used, marked_used.end()));
        CHECK(marked_used.empty() == !log_used);
        for (uint64_t page : marked_used) {
            marked.erase(page);
        }
        CHECK(marked == expected);
    }
}

TEST_CASE("under random I/O the marked pages are those that changed", "[dirty-log]") {
    logged_guest setup(true);
    blk_driver& driver = setup.guest->driver;
    guest_memory& memory = *setup.guest->memory;
    random_source random(test_seed(700));
    std::vector<std::byte> fill(1 << 20);
    random.fill(fill);
    for (uint64_t at = 0; at < disk_bytes; at += fill.size()) {
        REQUIRE(driver.write(at / sector_bytes, fill).status == blk_ok);
    }
    constexpr unsigned batch = 12;
    arena places[2][batch];
    for (auto& queue : places) {
        for (arena& place : queue) {
            place = {memory.allocate(arena::bytes_for(32 << 10)), arena::bytes_for(32 << 10)};
        }
    }
    std::span<std::byte> all = memory.span(1 << 20, memory.end() - (1 << 20));
    for (uint64_t round = scaled(40, 5); round > 0; round--) {
        // Everything the driver writes is written before the first snapshot, but for the index.
        pages expected;
        pages required;
        for (unsigned q = 0; q < 2; q++) {
            for (unsigned i = 0; i < batch; i++) {
                blk_request* request = driver.acquire(q);
                uint64_t bytes = random.between(1, 64) * sector_bytes;
                bool in = random.chance(60);
                request->type = static_cast<uint32_t>(in ? blk_op::read : blk_op::write);
                request->sector = random.below((disk_bytes - bytes) / sector_bytes);
                request->indirect = true;
                shape_randomly(random, memory, places[q][i], {}, *request,
                               std::span(fill).first(in ? 0 : bytes),
                               in ? static_cast<uint32_t>(bytes) : 0);
                REQUIRE(driver.submit(*request));
                required.merge(written_by(*request));
            }
        }
        expected = required;
        for (unsigned q = 0; q < 2; q++) {
            add_pages(expected, setup.ring(q).used, used_ring_bytes(setup.ring(q).size));
            // The elements and the index must be there, wherever in the ring they are.
            add_pages(required, setup.ring(q).used, 4);
        }
        std::vector<std::byte> before(all.begin(), all.end());
        setup.clear();
        uint16_t goal[2];
        for (unsigned q = 0; q < 2; q++) {
            goal[q] = static_cast<uint16_t>(driver.queue(q).used_index() + batch);
            driver.ring(q);
        }
        deadline until(default_timeout());
        while (driver.queue(0).used_index() != goal[0] || driver.queue(1).used_index() != goal[1]) {
            if (until.passed()) {
                FAIL("requests were not answered in time");
            }
        }
        // Draining makes the marks of the last used entries certain to be there.
        driver.stop();
        std::vector<std::byte> after(all.begin(), all.end());
        pages changed;
        for (size_t at = 0; at < after.size(); at++) {
            if (after[at] == before[at]) {
                continue;
            }
            uint64_t gpa = (1 << 20) + at;
            bool by_driver = false;
            for (unsigned q = 0; q < 2; q++) {
                vring_setup ring = setup.ring(q);
                by_driver |= gpa >= ring.avail && gpa < ring.avail + avail_ring_bytes(ring.size);
            }
            if (!by_driver) {
                changed.insert(gpa / log_page_bytes);
            }
        }
        pages marked = setup.marked();
        INFO("changed" << text_of(changed) << "\nmarked" << text_of(marked) << "\nrequired"
                       << text_of(required) << "\nexpected" << text_of(expected));
        REQUIRE(contains(marked, changed));
        REQUIRE(contains(marked, required));
        REQUIRE(contains(expected, marked));
        driver.resume();
        setup.log_all(true); // resume() negotiates without
        while (driver.in_flight() != 0) {
            blk_request& request = driver.next();
            REQUIRE(request.ok());
            driver.release(request);
        }
    }
}

TEST_CASE("without LOG_ALL nothing is marked", "[dirty-log]") {
    logged_guest setup(true);
    setup.log_all(false);
    setup.clear();
    std::vector<std::byte> data(65536);
    REQUIRE(setup.guest->driver.read(0, data).status == blk_ok);
    CHECK(setup.marked().empty());
    setup.log_all(true);
    REQUIRE(setup.guest->driver.read(0, data).status == blk_ok);
    CHECK_FALSE(setup.marked().empty());
}

TEST_CASE("a log that is too small for the guest's memory is refused, or marked as far as it goes",
          "[dirty-log]") {
    logged_guest setup(true);
    setup.clear();
    bool taken = true;
    try {
        setup.set_log(4096); // 128 MiB of guest memory; the used ring's address lies beyond
        vu_vring_addr addr = setup.guest->vhost_user().vring_addr(0, setup.ring(0));
        addr.log = uint64_t{1} << 40;
        setup.guest->vhost_user().client().set_vring_addr(addr);
        addr.log = ~uint64_t{0};
        setup.guest->vhost_user().client().set_vring_addr(addr);
    } catch (const refused&) {
        taken = false;
    } catch (const disconnected&) {
        taken = false;
    }
    if (taken) {
        std::vector<std::byte> data(65536);
        try {
            setup.guest->driver.read(0, data);
        } catch (const guest_error&) {
        }
        CHECK(setup.marked().count(~uint64_t{0}) == 0);
    }
    setup.guest->vhost_user().disconnect();
    test_guest next(setup.daemon->socket("d"));
    CHECK(next.driver.flush().status == blk_ok);
}

} // namespace vql::guest
