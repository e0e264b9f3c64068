// SPDX-License-Identifier: GPL-2.0-only
// Clients that share the wrong memory, rings and descriptors, or take memory away again.
#include "hostile.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t mib = 1 << 20;

struct named_fd {
    const char* what;
    unique_fd fd;
};

// Descriptors that are neither an eventfd nor memory.
std::vector<named_fd> odd_descriptors() {
    std::vector<named_fd> fds;
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    fds.push_back({"the read end of a pipe", unique_fd(ends[0])});
    fds.push_back({"the write end of a pipe", unique_fd(ends[1])});
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    fds.push_back({"a socket", unique_fd(ends[0])});
    fds.push_back({"another socket", unique_fd(ends[1])});
    fds.push_back({"/dev/null", unique_fd(open("/dev/null", O_RDWR | O_CLOEXEC))});
    fds.push_back({"a directory", unique_fd(open("/tmp", O_RDONLY | O_CLOEXEC))});
    fds.push_back({"an epoll set", unique_fd(epoll_create1(EPOLL_CLOEXEC))});
    return fds;
}

bool refuses(hostile_setup& setup, bool running, uint32_t request,
             std::span<const std::byte> payload, std::span<const int> fds) {
    attacker bad(setup.victim(), running);
    bad.client().send(request, vu_version | vu_need_reply, payload, fds);
    return refused_or_dropped(bad.client());
}

} // namespace

TEST_CASE("a notification descriptor that is not an eventfd is refused", "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    std::vector<named_fd> fds = odd_descriptors();
    fds.push_back({"a memfd", make_memfd("hostile", 4096)});
    fds.push_back({"a regular file", unique_fd(open((setup.daemon().directory() / "file").c_str(),
                                                    O_RDWR | O_CREAT | O_CLOEXEC, 0600))});
    for (uint32_t request : {vu_set_vring_kick, vu_set_vring_call, vu_set_vring_err}) {
        for (const named_fd& odd : fds) {
            INFO("request " << request << " with " << odd.what << ", running " << running);
            int fd = odd.fd.get();
            CHECK(refuses(setup, running, request, bytes_of(uint64_t{0}), std::span(&fd, 1)));
            setup.check_alive();
        }
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("an eventfd whose counter is full, or that blocks, stops nobody", "[hostile]") {
    hostile_setup setup;
    auto bad = std::make_unique<test_guest>(setup.victim(), small_guest());
    unique_fd full = make_eventfd();
    uint64_t most = ~uint64_t{0} - 1;
    REQUIRE(write(full.get(), &most, sizeof(most)) == sizeof(most));
    int flags = fcntl(full.get(), F_GETFL);
    REQUIRE(fcntl(full.get(), F_SETFL, flags & ~O_NONBLOCK) == 0);
    bad->device.set_call(0, full.get());
    if (!vdpa_world()) {
        bad->vhost_user().client().set_vring_fd(vu_set_vring_err, 0, full.get());
    }
    bad->driver.queue(0).arm_interrupt();
    // Blocking again, should the daemon have changed it.
    fcntl(full.get(), F_SETFL, flags & ~O_NONBLOCK);
    for (int i = 0; i < 10; i++) {
        CHECK(bad->driver.flush(0).status == blk_ok);
        bad->driver.queue(0).arm_interrupt();
    }
    setup.daemon().control().result({{"op", "disk_list"}});
    bad.reset();
    setup.check_serving();
}

TEST_CASE("memory regions that overlap, wrap, are empty or too many are refused", "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    unique_fd memory = make_memfd("hostile", 8 * mib);
    constexpr uint64_t gpa = uint64_t{1} << 40;
    constexpr uint64_t user = uint64_t{1} << 46;
    struct {
        const char* what;
        vu_region region;
    } const single[] = {
        {"no size", {gpa, 0, user, 0}},
        {"guest addresses that wrap", {~uint64_t{0} - mib + 1 + 4096, mib, user, 0}},
        {"user addresses that wrap", {gpa, mib, ~uint64_t{0} - mib + 1 + 4096, 0}},
        {"file offset that wraps", {gpa, mib, user, ~uint64_t{0} - mib + 1 + 4096}},
        {"size of all", {gpa, ~uint64_t{0}, user, 0}},
        {"size of half of all", {gpa, uint64_t{1} << 63, user, 0}},
        {"larger than its file", {gpa, 8 * mib + 4096, user, 0}},
        {"reaching beyond its file", {gpa, 8 * mib, user, 4096}},
        {"beginning beyond its file", {gpa, mib, user, 64 * mib}},
    };
    for (const auto& odd : single) {
        INFO(odd.what << ", running " << running);
        int fd = memory.get();
        CHECK(refuses(setup, running, vu_add_mem_reg, bytes_of(vu_mem_reg{0, odd.region}),
                      std::span(&fd, 1)));
        vu_mem_table table{};
        table.count = 1;
        table.regions[0] = odd.region;
        CHECK(refuses(setup, running, vu_set_mem_table, bytes_of(table).first(40),
                      std::span(&fd, 1)));
        setup.check_alive();
    }

    struct {
        const char* what;
        vu_region first, second;
    } const pairs[] = {
        {"the same twice", {gpa, mib, user, 0}, {gpa, mib, user, 0}},
        {"guest addresses overlap", {gpa, 2 * mib, user, 0}, {gpa + mib, mib, user + 64 * mib, 0}},
        {"guest addresses overlap by a page",
         {gpa, mib, user, 0},
         {gpa + mib - 4096, mib, user + 64 * mib, 0}},
    };
    for (const auto& odd : pairs) {
        INFO(odd.what << ", running " << running);
        vu_mem_table table{};
        table.count = 2;
        table.regions[0] = odd.first;
        table.regions[1] = odd.second;
        int fds[2] = {memory.get(), memory.get()};
        CHECK(refuses(setup, running, vu_set_mem_table, bytes_of(table).first(72), fds));
        attacker bad(setup.victim(), running);
        bad.client().add_mem_reg(odd.first, memory.get());
        bad.client().send(vu_add_mem_reg, vu_version | vu_need_reply,
                          bytes_of(vu_mem_reg{0, odd.second}), std::span(fds, 1));
        CHECK(refused_or_dropped(bad.client()));
    }

    for (uint32_t count : {2u, 9u, 0x10000001u, ~0u}) {
        INFO(count << " regions in a table of one");
        vu_mem_table table{};
        table.count = count;
        table.regions[0] = {gpa, mib, user, 0};
        int fd = memory.get();
        CHECK(refuses(setup, running, vu_set_mem_table, bytes_of(table).first(40),
                      std::span(&fd, 1)));
        CHECK(refuses(setup, running, vu_set_mem_table, bytes_of(table), std::span(&fd, 1)));
    }
    CHECK(
        refuses(setup, running, vu_rem_mem_reg, bytes_of(vu_mem_reg{0, {gpa, mib, user, 0}}), {}));
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("memory that cannot be mapped is refused", "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    std::vector<named_fd> fds = odd_descriptors();
    fds.push_back({"an eventfd", make_eventfd()});
    std::string path = setup.daemon().directory() / "file";
    make_file(path, mib);
    fds.push_back(
        {"a file opened for reading", unique_fd(open(path.c_str(), O_RDONLY | O_CLOEXEC))});
    fds.push_back({"an empty memfd", make_memfd("hostile", 0)});
    vu_region region{uint64_t{1} << 40, mib, uint64_t{1} << 46, 0};
    vu_log log{mib, 0};
    vu_inflight area{mib, 0, 1, 64, 0};
    for (const named_fd& odd : fds) {
        INFO(odd.what << ", running " << running);
        int fd = odd.fd.get();
        CHECK(refuses(setup, running, vu_add_mem_reg, bytes_of(vu_mem_reg{0, region}),
                      std::span(&fd, 1)));
        CHECK(refuses(setup, running, vu_set_log_base, bytes_of(log), std::span(&fd, 1)));
        CHECK(refuses(setup, running, vu_set_inflight_fd, bytes_of(area), std::span(&fd, 1)));
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("logs and in-flight areas of a wrong size are refused", "[hostile]") {
    vhost_user_setup setup;
    bool running = GENERATE(false, true);
    unique_fd file = make_memfd("hostile", 64 << 10);
    int fd = file.get();
    for (vu_log log :
         {vu_log{0, 0}, vu_log{128 << 10, 0}, vu_log{64 << 10, 4096}, vu_log{~uint64_t{0}, 0},
          vu_log{4096, ~uint64_t{0} - 4095}, vu_log{uint64_t{1} << 63, uint64_t{1} << 63}}) {
        INFO("log of " << log.bytes << " at " << log.offset << ", running " << running);
        CHECK(refuses(setup, running, vu_set_log_base, bytes_of(log), std::span(&fd, 1)));
    }
    for (vu_inflight area :
         {vu_inflight{0, 0, 1, 64, 0}, vu_inflight{16, 0, 1, 64, 0},
          vu_inflight{64 << 10, 63 << 10, 2, 64, 0}, vu_inflight{64 << 10, 0, 65535, 65535, 0},
          vu_inflight{64 << 10, 0, 0, 64, 0}, vu_inflight{64 << 10, 0, 1, 0, 0},
          vu_inflight{1 << 20, 0, 64, 1024, 0}, vu_inflight{~uint64_t{0}, 64 << 10, 1, 64, 0},
          vu_inflight{4096, ~uint64_t{0} - 4095, 1, 64, 0}}) {
        INFO("area of " << area.bytes << " at " << area.offset << " for " << area.queues << " x "
                        << area.queue_size << ", running " << running);
        CHECK(refuses(setup, running, vu_set_inflight_fd, bytes_of(area), std::span(&fd, 1)));
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("rings that are misaligned or outside guest memory are refused", "[hostile]") {
    vhost_user_setup setup;
    constexpr uint64_t user = uint64_t{1} << 46;
    const vu_vring_addr good{0, 0, user, user + 0x4000, user + 0x8000, 0};
    struct {
        const char* what;
        uint64_t vu_vring_addr::*which;
        uint64_t value;
    } const table[] = {
        {"misaligned descriptor table", &vu_vring_addr::desc, user + 8},
        {"misaligned available ring", &vu_vring_addr::avail, user + 0x8001},
        {"misaligned used ring", &vu_vring_addr::used, user + 0x4002},
        {"descriptor table at 0", &vu_vring_addr::desc, 0},
        {"available ring at 0", &vu_vring_addr::avail, 0},
        {"used ring at 0", &vu_vring_addr::used, 0},
        {"descriptor table before the memory", &vu_vring_addr::desc, user - 16},
        {"available ring before the memory", &vu_vring_addr::avail, user - 2},
        {"descriptor table across the end", &vu_vring_addr::desc, user + mib - 1008},
        {"available ring across the end", &vu_vring_addr::avail, user + mib - 128},
        {"used ring across the end", &vu_vring_addr::used, user + mib - 512},
        {"descriptor table behind the end", &vu_vring_addr::desc, user + mib},
        {"descriptor table at the last address", &vu_vring_addr::desc, ~uint64_t{0} - 15},
        {"available ring at the last address", &vu_vring_addr::avail, ~uint64_t{0} - 1},
        {"used ring at the last address", &vu_vring_addr::used, ~uint64_t{0} - 3},
    };
    unique_fd memory = make_memfd("hostile", mib);
    unique_fd event = make_eventfd();
    int fd = memory.get();
    for (const auto& odd : table) {
        INFO(odd.what);
        attacker bad(setup.victim(), false);
        vhost_user_client& client = bad.client();
        vu_vring_addr addr = good;
        addr.*odd.which = odd.value;
        // At the latest when the ring has all it needs, it is looked at.
        bool refused_it = false;
        try {
            client.set_features(bit(feature_version_1) | bit(feature_protocol));
            vu_region region{0, mib, user, 0};
            client.set_mem_table(std::span(&region, 1), std::span(&fd, 1));
            client.set_vring_num(0, 64);
            client.set_vring_base(0, 0);
            client.set_vring_addr(addr);
            client.set_vring_fd(vu_set_vring_call, 0, event.get());
            client.set_vring_fd(vu_set_vring_kick, 0, event.get());
            signal_eventfd(event.get());
            client.set_vring_enable(0, true);
            refused_it = client.dropped();
        } catch (const refused&) {
            refused_it = true;
        } catch (const disconnected&) {
            refused_it = true;
        }
        CHECK(refused_it);
        client.close();
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("memory whose file is truncated under the daemon costs only that client", "[hostile]") {
    vhost_user_setup setup;
    // Which part goes away: the data buffers, or everything, with the rings that are being polled.
    bool rings_too = GENERATE(false, true);
    for (uint64_t round = scaled(5, 2); round > 0; round--) {
        guest_options options = small_guest();
        options.start = false;
        options.memory_bytes = 4 << 20;
        test_guest guest(setup.victim(), options);
        guest.driver.start();
        const memory_slot& slot = guest.memory->slots().front();
        // Requests all the time, into the part that goes away, while it goes.
        std::vector<blk_request*> requests;
        for (unsigned i = 0; i < 16; i++) {
            blk_request* request = guest.driver.acquire(0);
            guest.driver.shape(*request, i % 2 == 0 ? blk_op::read : blk_op::write, 8 * i,
                               (3 << 20) + i * 32768, 32768);
            REQUIRE(guest.driver.submit(*request));
        }
        guest.driver.ring(0);
        REQUIRE(ftruncate(slot.file->get(), rings_too ? 0 : 3 << 20) == 0);
        signal_eventfd(guest.driver.queue(0).setup(0).kick_fd);
        signal_eventfd(guest.driver.queue(1).setup(0).kick_fd);
        if (rings_too) {
            CHECK(guest.vhost_user().client().dropped());
        } else {
            // What went into the hole is answered with an error, or the client is dropped.
            deadline until(milliseconds(200));
            while (guest.driver.in_flight() != 0 && !until.passed()) {
                guest.driver.poll(0);
            }
        }
        guest.device.disconnect();
        setup.check_serving();
    }
    setup.check_nothing_leaked();
}

TEST_CASE("a log or an in-flight area that is truncated costs only that client", "[hostile]") {
    vhost_user_setup setup;
    bool log = GENERATE(false, true);
    test_guest guest(setup.victim(), small_guest());
    unique_fd log_file = make_memfd("log", 4096);
    if (log) {
        guest.vhost_user().client().set_log_base(4096, 0, log_file.get());
        guest.vhost_user().client().set_features(guest.driver.features() | bit(feature_protocol) |
                                                 bit(feature_log_all));
    }
    std::vector<std::byte> data(4096);
    // The daemon seals the in-flight areas that it makes itself; a front end may bring its own.
    vu_inflight area = guest.vhost_user().inflight_area();
    unique_fd area_file = make_memfd("in-flight", area.bytes);
    if (!log) {
        guest.vhost_user().client().set_inflight_fd(area, area_file.get());
    }
    CHECK(guest.driver.read(0, data).status == blk_ok);
    REQUIRE(ftruncate(log ? log_file.get() : area_file.get(), 0) == 0);
    for (unsigned i = 0; i < 8; i++) {
        blk_request* request = guest.driver.acquire(0);
        guest.driver.shape(*request, blk_op::read, 0, 2 << 20, 4096);
        REQUIRE(guest.driver.submit(*request));
    }
    guest.driver.ring(0);
    CHECK(guest.vhost_user().client().dropped());
    guest.device.disconnect();
    setup.check_serving();
    setup.check_nothing_leaked();
}

TEST_CASE("an in-flight area full of rubbish does no harm", "[hostile]") {
    vhost_user_setup setup;
    random_source random(test_seed(620));
    for (uint64_t round = scaled(60, 10); round > 0; round--) {
        test_guest guest(setup.victim(), small_guest());
        guest.driver.stop();
        vu_inflight area = guest.vhost_user().inflight_area();
        mapping map(guest.vhost_user().inflight_fd(), area.bytes, area.offset);
        if (random.chance(50)) {
            random.fill(map.bytes());
        } else {
            // Plausible heads and links, so that recovery goes further.
            for (std::byte& byte : map.bytes()) {
                byte =
                    static_cast<std::byte>(random.chance(80) ? random.below(2) : random.below(256));
            }
        }
        try {
            guest.driver.resume();
            deadline until(milliseconds(20));
            while (!until.passed()) {
                guest.driver.poll(0);
            }
        } catch (const guest_error&) {
            // Refused, dropped, or answered with what was never asked: the area said so.
        }
        guest.device.disconnect();
        setup.check_alive();
    }
    setup.check_serving();
    setup.check_nothing_leaked();
}

} // namespace vql::guest
