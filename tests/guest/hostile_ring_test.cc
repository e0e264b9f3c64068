// SPDX-License-Identifier: GPL-2.0-only
// Drivers that break their rings: the queue stops, its disk says so, and everything else serves on.
#include "hostile.h"

#include <array>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>
#include <unistd.h>

namespace vql::guest {
namespace {

// A guest whose queue 0 is written by hand. Queue 1 is the well-behaved one.
struct ring_breaker {
    test_guest guest;
    uint64_t header; // a good header: read sector 0
    uint64_t data;
    uint64_t status;

    explicit ring_breaker(const std::string& socket, const guest_options& options = small_guest())
        : guest(socket, options), header(guest.memory->allocate(16)),
          data(guest.memory->allocate(65536, 4096)), status(guest.memory->allocate(16)) {
        *guest.memory->as<blk_header>(header) = {0, 0, 0};
        *guest.memory->at(status) = std::byte{blk_unwritten};
    }
    virtqueue_driver& queue() { return guest.driver.queue(0); }
    void set(uint16_t index, uint64_t addr, uint64_t len, unsigned flags, unsigned next = 0) {
        queue().descriptor(index) = {addr, static_cast<uint32_t>(len), static_cast<uint16_t>(flags),
                                     static_cast<uint16_t>(next)};
    }
    // A good read of one sector at descriptors 0, 1 and 2.
    void set_good_read() {
        set(0, header, 16, desc_next, 1);
        set(1, data, 512, desc_next | desc_write, 2);
        set(2, status, 1, desc_write);
    }
    vring_descriptor* table() {
        return guest.memory->as<vring_descriptor>(queue().indirect_table(0));
    }
    void set_good_table() {
        table()[0] = {header, 16, desc_next, 1};
        table()[1] = {data, 512, desc_next | desc_write, 2};
        table()[2] = {status, 1, desc_write, 0};
        set(0, queue().indirect_table(0), 48, desc_indirect);
    }
    void go(uint16_t head) {
        queue().publish_head(head);
        queue().kick();
    }
};

struct broken_ring {
    const char* what;
    void (*break_it)(ring_breaker&);
};

const broken_ring broken_rings[] = {
    {"a chain that loops",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(1, b.data, 512, desc_next | desc_write, 1);
         b.go(0);
     }},
    {"a chain of empty descriptors that loops",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(1, b.data, 0, desc_next | desc_write, 1);
         b.go(0);
     }},
    {"an indirect table of empty descriptors that loops",
     [](ring_breaker& b) {
         b.set_good_table();
         b.table()[1] = {b.data, 0, desc_next | desc_write, 1};
         b.go(0);
     }},
    {"a chain that loops over all descriptors",
     [](ring_breaker& b) {
         for (uint16_t i = 0; i < b.queue().size(); i++) {
             b.set(i, b.data, 1, desc_next | desc_write, (i + 1u) % b.queue().size());
         }
         b.set(0, b.header, 16, desc_next, 1);
         b.go(0);
     }},
    {"next out of range",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(1, b.data, 512, desc_next | desc_write, b.queue().size());
         b.set(b.queue().size(), b.status, 1, desc_write); // right, but for where it is
         b.go(0);
     }},
    {"next far out of range",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(0, b.header, 16, desc_next, 65535);
         b.go(0);
     }},
    {"a head out of range",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(b.queue().size(), b.header, 16, desc_next, 1);
         b.go(b.queue().size());
     }},
    {"the largest head",
     [](ring_breaker& b) {
         b.set_good_read();
         b.go(65535);
     }},
    {"a nested indirect table",
     [](ring_breaker& b) {
         b.set_good_table();
         b.table()[1] = {b.queue().indirect_table(1), 48, desc_indirect, 0};
         b.go(0);
     }},
    {"an indirect table that goes on with next",
     [](ring_breaker& b) {
         b.set_good_table();
         b.set(0, b.queue().indirect_table(0), 48, desc_indirect | desc_next, 1);
         b.set(1, b.status, 1, desc_write);
         b.go(0);
     }},
    {"an indirect table of 47 bytes",
     [](ring_breaker& b) {
         b.set_good_table();
         b.set(0, b.queue().indirect_table(0), 47, desc_indirect);
         b.go(0);
     }},
    {"an empty indirect table",
     [](ring_breaker& b) {
         b.set_good_table();
         b.set(0, b.queue().indirect_table(0), 0, desc_indirect);
         b.go(0);
     }},
    {"an indirect table of 4 GiB",
     [](ring_breaker& b) {
         b.set_good_table();
         b.set(0, b.queue().indirect_table(0), 0xfffffff0, desc_indirect);
         b.go(0);
     }},
    {"an indirect table outside memory",
     [](ring_breaker& b) {
         b.set(0, uint64_t{1} << 44, 48, desc_indirect);
         b.go(0);
     }},
    {"an indirect table whose addresses wrap",
     [](ring_breaker& b) {
         b.set(0, ~uint64_t{0} - 15, 48, desc_indirect);
         b.go(0);
     }},
    {"an indirect table that loops",
     [](ring_breaker& b) {
         b.set_good_table();
         b.table()[1].next = 1;
         b.go(0);
     }},
    {"next out of an indirect table",
     [](ring_breaker& b) {
         b.set_good_table();
         b.table()[1].next = 3;
         b.table()[3] = b.table()[2];
         b.go(0);
     }},
    {"readable behind writable",
     [](ring_breaker& b) {
         b.set(0, b.header, 16, desc_next, 1);
         b.set(1, b.status, 1, desc_write | desc_next, 2);
         b.set(2, b.data, 512, 0);
         b.go(0);
     }},
    {"readable behind writable in a table",
     [](ring_breaker& b) {
         b.set_good_table();
         b.table()[2].flags = 0;
         b.go(0);
     }},
    {"data outside memory",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(1, uint64_t{1} << 44, 512, desc_next | desc_write, 2);
         b.go(0);
     }},
    {"data at the last address",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(1, ~uint64_t{0} - 511, 512, desc_next | desc_write, 2);
         b.go(0);
     }},
    {"data whose addresses wrap",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(1, ~uint64_t{0} - 255, 512, desc_next | desc_write, 2);
         b.go(0);
     }},
    {"data that reaches one byte beyond memory",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(1, b.guest.memory->end() - 511, 512, desc_next | desc_write, 2);
         b.go(0);
     }},
    {"the header outside memory",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(0, b.guest.memory->end(), 16, desc_next, 1);
         b.go(0);
     }},
    {"the status outside memory",
     [](ring_breaker& b) {
         b.set_good_read();
         b.set(2, b.guest.memory->end(), 1, desc_write);
         b.go(0);
     }},
    {"lengths that overflow 32 bits",
     [](ring_breaker& b) {
         // All of memory, 4 MiB, 1024 times.
         for (unsigned i = 0; i < 1024; i++) {
             b.table()[i] = {0, static_cast<uint32_t>(b.guest.memory->end()),
                             desc_next | desc_write, static_cast<uint16_t>(i + 1)};
         }
         b.table()[1023].flags = desc_write;
         b.set(0, b.queue().indirect_table(0), 16 * 1024, desc_indirect);
         b.go(0);
     }},
    {"no writable byte",
     [](ring_breaker& b) {
         b.set(0, b.header, 16, 0);
         b.go(0);
     }},
    {"a writable part without a byte",
     [](ring_breaker& b) {
         b.set(0, b.header, 16, desc_next, 1);
         b.set(1, b.status, 0, desc_write);
         b.go(0);
     }},
    {"an available index that runs ahead by more than the queue",
     [](ring_breaker& b) {
         b.set_good_read();
         b.queue().publish_index(
             static_cast<uint16_t>(b.queue().published() + b.queue().size() + 1));
         b.queue().kick();
     }},
    {"an available index that goes back",
     [](ring_breaker& b) {
         b.queue().publish_index(static_cast<uint16_t>(b.queue().published() - 1));
         b.queue().kick();
     }},
};

} // namespace

TEST_CASE("a broken ring stops, says so, and works again after a reset; nobody else is touched",
          "[hostile]") {
    hostile_setup setup;
    for (const broken_ring& broken : broken_rings) {
        INFO(broken.what);
        size_t log_before = setup.daemon().log().size();
        {
            ring_breaker breaker(setup.victim());
            test_guest& guest = breaker.guest;
            uint16_t used_before = breaker.queue().used_index();
            broken.break_it(breaker);
            CHECK(breaker.guest.device.wait_ring_error(0, default_timeout()));
            CHECK(guest.device.wait_config_change(default_timeout()));
            CHECK((guest.device.status() & status_needs_reset) != 0);
            CHECK(setup.daemon().wait_log("warning: disk victim queue 0: stopped: ", log_before));
            CHECK(breaker.queue().used_index() == used_before);
            CHECK(*guest.memory->at(breaker.status) == std::byte{blk_unwritten});

            // The other queue of this disk goes on, and this one stays stopped.
            CHECK(guest.driver.flush(1).status == blk_ok);
            breaker.set_good_read();
            breaker.queue().kick();
            usleep(1000);
            CHECK(breaker.queue().used_index() == used_before);

            guest.device.set_status(0);
            CHECK(guest.device.status() == 0);
            guest.driver.start();
            CHECK(guest.driver.flush(0).status == blk_ok);
            CHECK(guest.driver.flush(1).status == blk_ok);
            CHECK(guest.device.status() ==
                  (status_acknowledge | status_driver | status_features_ok | status_driver_ok));
        }
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("an indirect table that was not negotiated breaks the ring", "[hostile]") {
    hostile_setup setup;
    guest_options options = small_guest();
    options.blk.indirect = false;
    ring_breaker breaker(setup.victim(), options);
    uint64_t table = breaker.guest.memory->allocate(48);
    auto* entries = breaker.guest.memory->as<vring_descriptor>(table);
    entries[0] = {breaker.header, 16, desc_next, 1};
    entries[1] = {breaker.data, 512, desc_next | desc_write, 2};
    entries[2] = {breaker.status, 1, desc_write, 0};
    breaker.set(0, table, 48, desc_indirect);
    breaker.go(0);
    CHECK(breaker.guest.device.wait_ring_error(0, default_timeout()));
    CHECK(breaker.guest.driver.flush(1).status == blk_ok);
}

TEST_CASE("what was in flight when its ring broke is still answered", "[hostile]") {
    hostile_setup setup;
    ring_breaker breaker(setup.victim());
    blk_driver& driver = breaker.guest.driver;
    for (unsigned i = 0; i < 8; i++) {
        blk_request* request = driver.acquire(0);
        driver.shape(*request, blk_op::read, 8 * i, breaker.data + i * 4096, 4096);
        REQUIRE(driver.submit(*request));
    }
    // The ninth is broken; all nine become visible at once.
    breaker.queue().publish_head(60000);
    breaker.queue().kick();
    CHECK(breaker.guest.device.wait_ring_error(0, default_timeout()));
    deadline until(default_timeout());
    while (driver.in_flight() != 0 && !until.passed()) {
        driver.poll(0);
    }
    CHECK(driver.in_flight() == 0);
    CHECK(driver.flush(1).status == blk_ok);
}

TEST_CASE("legal oddities are served: direct descriptors before a table, a table and its entries "
          "across slots, many segments",
          "[hostile]") {
    hostile_setup setup;
    guest_options options = small_guest();
    options.slots = 2;
    ring_breaker breaker(setup.victim(), options);
    test_guest& guest = breaker.guest;
    auto answered = [&breaker](uint16_t used_before) {
        deadline until(default_timeout());
        while (breaker.queue().used_index() == used_before) {
            if (until.passed()) {
                return false;
            }
        }
        return true;
    };
    uint16_t used = breaker.queue().used_index();

    breaker.table()[0] = {breaker.data, 512, desc_next | desc_write, 1};
    breaker.table()[1] = {breaker.status, 1, desc_write, 0};
    breaker.set(0, breaker.header, 16, desc_next, 5);
    breaker.set(5, breaker.queue().indirect_table(0), 32, desc_indirect);
    breaker.go(0);
    REQUIRE(answered(used++));
    CHECK(*guest.memory->at(breaker.status) == std::byte{blk_ok});
    CHECK(breaker.queue().used_element(static_cast<uint16_t>(used - 1)).len == 513);

    // The border runs through the middle of the second entry.
    uint64_t border = guest.memory->slots()[1].gpa;
    uint64_t at = border - 24;
    auto* entries = guest.memory->as<vring_descriptor>(at);
    entries[0] = {breaker.header, 16, desc_next, 1};
    entries[1] = {breaker.data, 512, desc_next | desc_write, 2};
    entries[2] = {breaker.status, 1, desc_write, 0};
    *guest.memory->at(breaker.status) = std::byte{blk_unwritten};
    breaker.set(0, at, 48, desc_indirect);
    breaker.go(0);
    REQUIRE(answered(used++));
    CHECK(*guest.memory->at(breaker.status) == std::byte{blk_ok});

    // A table whose unused end is longer than the chain, and chains that are not in order.
    breaker.table()[0] = {breaker.header, 16, desc_next, 7};
    breaker.table()[7] = {breaker.data, 512, desc_next | desc_write, 3};
    breaker.table()[3] = {breaker.status, 1, desc_write, 0};
    *guest.memory->at(breaker.status) = std::byte{blk_unwritten};
    breaker.set(0, breaker.queue().indirect_table(0), 16 * 100, desc_indirect);
    breaker.go(0);
    REQUIRE(answered(used++));
    CHECK(*guest.memory->at(breaker.status) == std::byte{blk_ok});

    // More segments than seg_max allows: it does not have to be served, yet it is.
    auto* table = breaker.table();
    table[0] = {breaker.header, 16, desc_next, 1};
    for (unsigned i = 1; i <= 1000; i++) {
        table[i] = {breaker.data + i, 512, desc_next | desc_write, static_cast<uint16_t>(i + 1)};
    }
    table[1001] = {breaker.status, 1, desc_write, 0};
    *guest.memory->at(breaker.status) = std::byte{blk_unwritten};
    breaker.set(0, breaker.queue().indirect_table(0), 16 * 1002, desc_indirect);
    breaker.go(0);
    REQUIRE(answered(used++));
    CHECK(*guest.memory->at(breaker.status) == std::byte{blk_ok});
    CHECK(guest.driver.flush(1).status == blk_ok);
}

TEST_CASE("the same head made available many times at once does no harm", "[hostile]") {
    hostile_setup setup;
    for (uint64_t round = scaled(10, 3); round > 0; round--) {
        ring_breaker breaker(setup.victim());
        breaker.set_good_read();
        for (unsigned i = 0; i < breaker.queue().size(); i++) {
            breaker.queue().publish_head(0);
        }
        breaker.queue().kick();
        usleep(2000);
        CHECK(breaker.guest.driver.flush(1).status == blk_ok);
        breaker.guest.device.disconnect();
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("rings, tables and headers that are scribbled over while the daemon reads them do no "
          "harm",
          "[hostile]") {
    hostile_setup setup;
    random_source random(test_seed(630));
    for (uint64_t round = scaled(60, 8); round > 0; round--) {
        ring_breaker breaker(setup.victim());
        test_guest& guest = breaker.guest;
        vring_setup ring = breaker.queue().setup(0);
        deadline until(milliseconds(15));
        for (unsigned step = 0; !until.passed(); step++) {
            auto index = static_cast<uint16_t>(random.below(16));
            // Mostly plausible, so that requests run while their descriptors change.
            uint64_t addr = random.chance(90) ? random.below(guest.memory->end()) : random.next();
            uint32_t len = random.chance(80) ? static_cast<uint32_t>(random.below(5) * 512 + 1)
                                             : static_cast<uint32_t>(random.next());
            uint64_t flags = random.chance(90) ? random.below(4) : random.below(8);
            switch (random.below(8)) {
            case 0: breaker.set_good_read(); break;
            case 1: breaker.set_good_table(); break;
            case 2:
                breaker.table()[index] = {random.chance(50) ? breaker.status : addr, len,
                                          static_cast<uint16_t>(flags), index};
                break;
            case 3:
                *guest.memory->as<blk_header>(breaker.header) = {
                    static_cast<uint32_t>(random.below(14)), 0, random.below(20000)};
                break;
            case 4:
                breaker.queue().publish_index(
                    static_cast<uint16_t>(breaker.queue().used_index() + random.below(70)));
                break;
            case 5:
                guest.memory->as<uint16_t>(ring.used)[random.below(8)] =
                    static_cast<uint16_t>(random.next());
                break;
            default:
                breaker.set(index, addr, len, static_cast<unsigned>(flags),
                            static_cast<unsigned>(random.below(17)));
                break;
            }
            if (step % 16 == 0) {
                breaker.queue().kick();
            }
        }
        // Its reads may have hit queue 1's ring as well: only the others count.
        guest.device.disconnect();
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

} // namespace vql::guest
