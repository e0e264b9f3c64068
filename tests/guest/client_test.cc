// SPDX-License-Identifier: GPL-2.0-only
// VMMs that come one too many, too often, or without what their guest needs: they are told, the
// operator sees it, and nobody else notices.
#include "e2e.h"

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

namespace vql::guest {
namespace {

constexpr uint64_t disk_bytes = 16 << 20;

std::string disks_of(unsigned count) {
    std::string text;
    for (unsigned i = 0; i < count; i++) {
        std::string n = std::to_string(i);
        text += null_target("t" + n, "16M") + disk_on("d" + n, "t" + n);
    }
    return text;
}

bool has_problem(const test_daemon& daemon, const std::string& text) {
    return daemon.entry("d0").at("problem").get<std::string>().find(text) != std::string::npos;
}

unsigned count_in(const std::string& text, const std::string& what) {
    unsigned count = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) {
        count++;
    }
    return count;
}

// Lets the daemon have no more descriptors than it has now, and these. Returns the limit as it was.
rlimit leave_descriptors(pid_t pid, unsigned more) {
    std::set<uint64_t> used;
    for (const auto& entry :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
        used.insert(std::stoull(entry.path().filename()));
    }
    rlimit limit{};
    REQUIRE(prlimit(pid, RLIMIT_NOFILE, nullptr, &limit) == 0);
    rlimit before = limit;
    // The lowest free number is what comes next; those beyond the limit stay open.
    limit.rlim_cur = 0;
    for (unsigned free = 0; free < more; limit.rlim_cur++) {
        free += used.count(limit.rlim_cur) == 0 ? 1 : 0;
    }
    REQUIRE(prlimit(pid, RLIMIT_NOFILE, &limit, nullptr) == 0);
    return before;
}

} // namespace

TEST_CASE("a second VMM on a disk is turned away at once, and named", "[client]") {
    vhost_user_only skip("the kernel refuses a second user of a vhost-vdpa device");
    test_daemon daemon(disks_of(1));
    std::string path = daemon.device("d0");
    std::string self = "pid " + std::to_string(getpid()) + " (";
    CHECK(daemon.entry("d0").at("client").is_null());
    auto first = std::make_unique<test_guest>(path);
    {
        vhost_user_client second(path);
        CHECK(second.dropped(milliseconds(1000)));
    }
    CHECK(first->driver.flush().status == blk_ok);
    CHECK(daemon.wait_log("disk d0: turned away " + self));
    CHECK(daemon.log().find("in use by " + self) != std::string::npos);
    nlohmann::json entry = daemon.entry("d0");
    CHECK(entry.at("client").at("pid") == getpid());
    CHECK(!entry.at("client").at("command").get<std::string>().empty());
    CHECK(entry.at("refused_clients").at("count") == 1);
    CHECK(entry.at("refused_clients").at("last").at("pid") == getpid());
    // One that comes as its predecessor has gone is its successor.
    for (int round = 0; round < 20; round++) {
        first.reset();
        first = std::make_unique<test_guest>(path);
        CHECK(first->driver.flush().status == blk_ok);
    }
    CHECK(daemon.entry("d0").at("refused_clients").at("count") == 1);
}

TEST_CASE("what a client can have the daemon say is one line a second", "[client]") {
    vhost_user_only skip("VMMs on vhost-vdpa devices send the daemon nothing");
    test_daemon daemon(disks_of(2));
    test_guest neighbour(daemon.device("d1"));
    size_t before = daemon.log().size();
    auto started = std::chrono::steady_clock::now();
    unsigned sent = 0;
    while (std::chrono::steady_clock::now() - started < milliseconds(2500) || sent < 200) {
        vhost_user_client client(daemon.device("d0"));
        client.send(9999, vu_version);
        CHECK(client.dropped());
        sent++;
    }
    CHECK(daemon.wait_log("such lines; the others are left out", before));
    usleep(1100 * 1000); // the last one
    auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - started)
            .count();
    std::string log = daemon.log().substr(before);
    CHECK(count_in(log, "\n") <= unsigned(seconds) + 2);
    CHECK(neighbour.driver.flush().status == blk_ok);
    CHECK(has_problem(daemon, "its last client was dropped"));
}

TEST_CASE("out of descriptors, clients are turned away, and an operator is answered", "[client]") {
    vhost_user_only skip("it is the socket's clients that take them");
    constexpr unsigned disks = 24;
    test_daemon daemon(disks_of(disks));
    test_guest served(daemon.device("d0"));
    CHECK(served.driver.flush().status == blk_ok);
    rlimit limit = leave_descriptors(daemon.pid(), 4);
    std::vector<std::unique_ptr<vhost_user_client>> clients;
    std::vector<std::string> refused;
    for (unsigned i = 1; i < disks; i++) {
        std::string path = daemon.device("d" + std::to_string(i)); // the control socket answers
        clients.push_back(std::make_unique<vhost_user_client>(path));
        try {
            clients.back()->send(vu_get_features, vu_version);
            clients.back()->receive();
        } catch (const guest_error&) {
            refused.push_back(path);
        }
    }
    CHECK(refused.size() < disks - 1);
    REQUIRE(!refused.empty());
    CHECK(served.driver.flush().status == blk_ok);
    // Nothing turns while nobody asks for anything.
    auto before = daemon.cpu_time();
    usleep(500 * 1000);
    CHECK(daemon.cpu_time() - before < milliseconds(100));
    CHECK(count_in(daemon.log(), "no file descriptor is left") <= 2); // control, disks
    CHECK(daemon.log().find("no file descriptor is left") != std::string::npos);
    // When there is room, things go on.
    clients.clear();
    REQUIRE(prlimit(daemon.pid(), RLIMIT_NOFILE, &limit, nullptr) == 0);
    deadline until(default_timeout());
    bool again = false;
    while (!again && !until.passed()) {
        try {
            test_guest guest(refused.front());
            again = guest.driver.flush().status == blk_ok;
        } catch (const guest_error&) {
            usleep(10 * 1000);
        }
    }
    CHECK(again);
}

TEST_CASE("a guest whose memory is not shared is told of", "[client]") {
    vhost_user_only skip("a vDPA device's memory is pinned, whatever it is");
    test_daemon daemon(disks_of(1));
    guest_options options;
    options.start = options.blk.event_idx = options.blk.indirect = false;
    test_guest guest(daemon.device("d0"), options);
    vhost_user_client& client = guest.vhost_user().client();
    guest.device.set_driver_features(guest.device.device_features() & bit(feature_version_1));
    guest.device.share_memory(*guest.memory);
    std::vector<vring_setup> setups{guest.driver.queue(0).setup(0)};
    SECTION("none of it: the VMM has no descriptor for it") {
        client.rem_mem_reg(region_of(guest.memory->slots()[0]));
        guest.device.start_queues(setups);
        CHECK(daemon.wait_log("queue 0 cannot start: its VMM shares no guest memory"));
        CHECK(has_problem(daemon, "shares no guest memory"));
        client.add_mem_reg(region_of(guest.memory->slots()[0]),
                           guest.memory->slots()[0].file->get());
    }
    SECTION("a copy of it: the VMM maps a file privately") {
        const memory_slot& slot = guest.memory->slots()[0];
        unique_fd file(memfd_create("stranger", MFD_CLOEXEC));
        REQUIRE(ftruncate(file.get(), static_cast<off_t>(slot.file_offset + slot.bytes)) == 0);
        vu_region region = region_of(slot);
        int fd = file.get();
        client.set_mem_table(std::span(&region, 1), std::span(&fd, 1));
        guest.device.start_queues(setups);
        guest.driver.queue(0).kick();
        CHECK(daemon.wait_log("queue 0 was kicked and is empty"));
        CHECK(has_problem(daemon, "was kicked and is empty"));
        int right = slot.file->get();
        client.set_mem_table(std::span(&region, 1), std::span(&right, 1));
    }
    std::array<std::byte, sector_bytes> sector;
    CHECK(guest.driver.read(0, sector).status == blk_ok);
    CHECK_FALSE(has_problem(daemon, "queue"));
}

TEST_CASE("a driver is asked to look at its disk's size when its rings start", "[client][resize]") {
    vhost_user_only skip("the module interrupts by itself");
    test_storage storage;
    storage.add("t", disk_bytes);
    test_daemon daemon(storage.targets() + storage.disk("d0", "t"));
    test_guest guest(daemon.device("d0"));
    CHECK(guest.device.wait_config_change(default_timeout()));
    CHECK(guest.driver.capacity() == disk_bytes / sector_bytes);
    // Saved, resized, restored.
    guest.driver.stop();
    guest.device.disconnect();
    daemon.control().result({{"op", "disk_resize"}, {"name", "d0"}, {"size", 2 * disk_bytes}});
    guest.device.reconnect();
    guest.driver.resume();
    CHECK(guest.device.wait_config_change(default_timeout()));
    CHECK(guest.driver.capacity() == 2 * disk_bytes / sector_bytes);
    // In the same VMM as before, too.
    guest.driver.stop();
    guest.driver.resume();
    CHECK(guest.device.wait_config_change(default_timeout()));
    CHECK(guest.driver.flush().status == blk_ok);
}

} // namespace vql::guest
