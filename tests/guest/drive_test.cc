// SPDX-License-Identifier: GPL-2.0-only
// Drives that fail: controllers that are reset, taken away, pulled, or no longer answer. Hidden:
// cases of tests/vm run them, each by its tag, and do that to the drive.
#include "e2e.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace vql::guest {
namespace {

using Catch::Matchers::ContainsSubstring;

constexpr uint64_t disk_bytes = 16 << 20;

// A disk on each of the drives that something is done to, and another one, whose guest must go on.
struct setup {
    test_storage storage;
    test_daemon daemon;
    explicit setup(unsigned victims = 1) : daemon(configuration(victims)) {}
    std::string configuration(unsigned victims) {
        storage.add("t", disk_bytes);
        std::string text = storage.targets() + storage.disk("other", "t");
        for (unsigned n = 0; n < victims; n++) {
            text += victim_disk(n, disk_bytes);
        }
        return text;
    }
};

// A guest with a model on a victim. Throws what goes wrong, so it can run on any thread.
struct victim_guest {
    std::string path;
    test_guest guest;
    std::vector<std::byte> model;
    model_run run;

    victim_guest(const test_daemon& daemon, unsigned n, const run_options& options = {})
        : path(daemon.device("victim" + std::to_string(n))), guest(path, two_queue_guest()),
          model(disk_bytes), run(guest.driver, model, test_seed(1400 + n), options) {
        need(guest.driver.write_zeroes({0, disk_bytes / sector_bytes, 0}).status == blk_ok,
             "the disk is zeroed");
    }

    static void need(bool is_so, const std::string& what) {
        if (!is_so) {
            throw guest_error("not so: " + what);
        }
    }

    // Load until done() or a request fails; true if one did.
    template <class F>
    bool load_until(F&& done, milliseconds timeout = default_timeout()) {
        deadline until(timeout);
        run.start(uint64_t{1} << 40);
        try {
            while (!done()) {
                if (until.passed()) {
                    throw timeout_error("neither an error nor an end in time");
                }
                run.step();
            }
        } catch (const timeout_error&) {
            throw;
        } catch (const guest_error& error) {
            need(std::string(error.what()).starts_with("status 1"), error.what());
            return true;
        }
        return false;
    }
    void load_for(milliseconds time) {
        deadline until(time);
        need(!load_until([&] { return until.passed(); }), "no request fails");
    }
    // Under load, the case does something to the drive, after which all is answered, with errors.
    void lose(const std::string& word, milliseconds timeout = default_timeout()) {
        load_for(milliseconds(300));
        auto does = std::async(std::launch::async, let_case, word);
        need(load_until([] { return false; }, timeout), "requests fail");
        does.get();
        need(guest.disk_lost(timeout), "all in flight is answered");
        for (unsigned queue = 0; queue < 2; queue++) {
            std::array<std::byte, sector_bytes> sector{};
            need(guest.driver.write(0, sector, queue).status == blk_ioerr, "a write fails");
            need(guest.driver.flush(queue).status == blk_ioerr, "a flush fails");
        }
    }
    // Its VMM comes anew, as after a reboot.
    void restart() {
        guest.device.disconnect();
        guest.device.reconnect();
        guest.driver.start();
    }
    // The drive is back: what was acknowledged is there.
    void goes_on() {
        restart();
        run.settle_lost();
        run.run(200);
        std::vector<std::byte> all(1 << 20);
        for (uint64_t at = 0; at < disk_bytes; at += all.size()) {
            need(guest.driver.read(at / sector_bytes, all).status == blk_ok, "it can be read");
            need(std::equal(all.begin(), all.end(), model.begin() + static_cast<ptrdiff_t>(at)),
                 "the disk is as its model");
        }
    }
};

constexpr const char* gave_up = "its disks answer with errors from now on";

} // namespace

// Each of its requests is several commands, and they are more than the kernel lane has: so both
// queues wait for a drive that does nothing. None is of more pieces than the lane takes, however
// the guest's pages lie.
TEST_CASE("more requests than the drive takes are served when it takes them", "[.][crowd]") {
    constexpr unsigned depth = 64;
    constexpr uint32_t bytes = 240 * 4096;
    test_daemon daemon(victim_disk(0, disk_bytes));
    guest_options options = two_queue_guest();
    options.blk.depth = depth;
    options.blk.queue_size = 256;
    test_guest guest(daemon.device("victim0"), options);
    blk_driver& driver = guest.driver;
    const uint64_t gpa = driver.memory().allocate(bytes, 4096);
    for (unsigned round = 0; round < 3; round++) {
        let_case("hold");
        for (unsigned queue = 0; queue < 2; queue++) {
            for (unsigned n = 0; n < depth; n++) {
                blk_request& r = *driver.acquire(queue);
                driver.shape(r, blk_op::read, n % 8, gpa, bytes);
                REQUIRE(driver.submit(r));
            }
            driver.ring(queue);
        }
        let_case("watch");
        let_case("release");
        while (driver.in_flight() != 0) {
            blk_request& r = driver.next();
            REQUIRE(r.status == blk_ok);
            driver.release(r);
        }
    }
    const auto list = daemon.control().result({{"op", "disk_list"}});
    INFO(list.dump());
    CHECK(list.at(0).at("lanes").at(1).at("kernel_requests") ==
          (lane() == "kernel" ? 3 * depth : 0));
}

TEST_CASE("a controller that is reset is no more than a delay", "[.][drive-reset]") {
    setup with;
    victim_guest victim(with.daemon, 0);
    SECTION("under load") {
        for (unsigned round = 0; round < 3; round++) {
            auto does = std::async(std::launch::async, let_case, "reset");
            victim.load_for(milliseconds(1500));
            does.get();
            victim.run.drain();
        }
        CHECK(with.daemon.wait_log("lost a queue pair, and goes on with a new one"));
    }
    SECTION("while nothing is under way") {
        let_case("reset");
        CHECK(victim.guest.driver.flush().status == blk_ok);
    }
    SECTION("while nothing is under way, and then a VMM comes") {
        victim.guest.device.disconnect();
        let_case("reset");
        victim.restart();
        CHECK(victim.guest.driver.flush().status == blk_ok);
    }
    victim.goes_on();
}

// Its admin queue is mute while it starts, so that it does not start sooner than the test wants.
TEST_CASE("a disk that comes while its controller starts is in the kernel lane when it has started",
          "[.][drive-restarts]") {
    setup with;
    victim_guest victim(with.daemon, 0);
    auto come_to = [&](const std::string& lane) {
        deadline until(default_timeout());
        for (;;) {
            const auto lanes = with.daemon.entry("victim0").at("lanes");
            if (lanes.at(0).at("lane") == lane && lanes.at(1).at("lane") == lane) {
                return true;
            }
            if (until.passed()) {
                return false;
            }
            usleep(100000);
        }
    };
    auto kernel_requests = [&] {
        return with.daemon.entry("victim0").at("lanes").at(0).at("kernel_requests").get<uint64_t>();
    };
    CHECK(come_to("kernel"));
    victim.guest.device.disconnect();
    let_case("restart");
    victim.restart();
    CHECK(come_to("kernel"));
    const auto served = kernel_requests();
    let_case("started");
    CHECK(victim.guest.driver.flush().status == blk_ok);
    CHECK(come_to("kernel"));
    CHECK(kernel_requests() > served);
    victim.goes_on();
}

// What a lost queue pair had under way is for the daemon to finish, in either lane: for the one
// that is there, or the next. The drive is slow, so that there is something.
TEST_CASE("what is under way in a controller that is reset is done, also if the daemon is dead",
          "[.][drive-reset]") {
    std::string text = victim_target(0);
    for (unsigned n = 0; n < 2; n++) {
        text += disk_of(
            "victim" + std::to_string(n),
            "extents = [ { target = \"victim0\", offset = " + std::to_string(n * disk_bytes) +
                ", length = " + std::to_string(disk_bytes) + " } ]\nqueues = 2\n");
    }
    test_daemon daemon(text);
    run_options small; // what the kernel lane serves without anybody's help
    small.max_bytes = 4096;
    small.discard = small.write_zeroes = false;
    small.layout.misaligned = false;
    small.layout.max_pieces = 1;
    std::array<victim_guest, 2> victims{{{daemon, 0, small}, {daemon, 1, small}}};
    auto load_for = [&](milliseconds time) {
        for (deadline until(time); !until.passed();) {
            for (victim_guest& v : victims) {
                v.run.step();
            }
        }
    };
    for (unsigned round = 0; round < 4; round++) {
        const bool killed = round % 2 != 0;
        for (victim_guest& v : victims) {
            v.run.start(uint64_t{1} << 40);
        }
        load_for(milliseconds(200));
        let_case("slow");
        load_for(milliseconds(200));
        if (killed) {
            daemon.kill();
        }
        auto does = std::async(std::launch::async, let_case, "reset");
        while (does.wait_for(milliseconds(0)) != std::future_status::ready) {
            load_for(milliseconds(1));
        }
        does.get();
        let_case("fast");
        if (killed) {
            daemon.start();
        }
        for (victim_guest& v : victims) {
            if (killed) {
                v.guest.daemon_is_back();
            }
            v.run.drain();
        }
    }
    for (victim_guest& v : victims) {
        v.goes_on();
    }
}

TEST_CASE("a drive that is unbound fails its disks, and serves them again when it is back",
          "[.][drive-unbound]") {
    setup with;
    bystander other(with.daemon.device("other"), disk_bytes, test_seed(1500));
    victim_guest victim(with.daemon, 0);
    victim.lose("unbind");
    CHECK(with.daemon.wait_log(gave_up));
    CHECK(other.goes_on());
    victim.restart();
    CHECK(victim.guest.driver.flush().status == blk_ioerr);
    CHECK(other.goes_on());
    let_case("bind");
    CHECK(with.daemon.terminate() == 0);
    with.daemon.start();
    victim.goes_on();
    CHECK(other.goes_on());
    CHECK(other.stop() == "");
}

TEST_CASE("a drive that is pulled fails its disks", "[.][drive-pulled]") {
    setup with;
    bystander other(with.daemon.device("other"), disk_bytes, test_seed(1510));
    victim_guest victim(with.daemon, 0);
    victim.lose("pull");
    CHECK(with.daemon.wait_log(gave_up));
    CHECK(other.goes_on());
    victim.restart();
    CHECK(victim.guest.driver.flush().status == blk_ioerr);
    CHECK(other.goes_on());
    CHECK(other.stop() == "");
}

// Both take what the daemon waits before it does something, so they wait together.
TEST_CASE("a controller that does not answer is reset, and given up if that does not help",
          "[.][drive-mute]") {
    const milliseconds patience(240000);
    setup with(2);
    bystander other(with.daemon.device("other"), disk_bytes, test_seed(1520));
    run_options patient;
    patient.timeout = patience;
    victim_guest heals(with.daemon, 0, patient), hung(with.daemon, 1, patient);
    auto healing = std::async(std::launch::async, [&] {
        heals.load_for(milliseconds(300));
        auto does = std::async(std::launch::async, let_case, "mute");
        heals.load_for(milliseconds(3000));
        does.get();
        uint64_t done = heals.run.counts().total();
        heals.load_for(milliseconds(2000));
        heals.need(heals.run.counts().total() == done, "it is mute");
        let_case("unmute"); // and nobody tells it to look at its queues
        heals.run.drain();
    });
    auto hanging = std::async(std::launch::async, [&] { hung.lose("mute_for_ever", patience); });
    CHECK(with.daemon.wait_log("are not answered after 30 s", 0, patience));
    CHECK(with.daemon.control().result({{"op", "disk_list"}}).size() == 3);
    CHECK(other.goes_on());
    CHECK_NOTHROW(healing.get());
    CHECK_NOTHROW(hanging.get());
    CHECK(with.daemon.wait_log("aborting did not help; resetting it"));
    CHECK(with.daemon.wait_log("lost a queue pair, and goes on with a new one"));
    CHECK(with.daemon.wait_log(gave_up));
    heals.goes_on();
    CHECK(other.goes_on());
    let_case("rebind");
    CHECK(with.daemon.terminate() == 0);
    with.daemon.start();
    hung.goes_on();
    heals.goes_on();
    CHECK(other.goes_on());
    CHECK(other.stop() == "");
}

namespace {

constexpr uint64_t place_bytes = 4 << 20; // of each target
constexpr uint64_t piece_bytes = 64 << 10;

std::string place(const std::string& target, uint64_t offset, uint64_t bytes) {
    return "{ target = \"" + target + "\", offset = " + std::to_string(offset) +
           ", length = " + std::to_string(bytes) + " }";
}

} // namespace

TEST_CASE("a disk over namespaces of several drives, and a file, holds each byte where its table "
          "says",
          "[.][namespaces]") {
    test_storage storage;
    storage.add("drive", place_bytes);
    storage.add_file("file", place_bytes);
    const std::string targets =
        storage.targets() + victim_target(0) + victim_target(0, 2) + victim_target(1);
    const std::vector<std::string> names = {"drive", "file", "victim0", "victim0-2", "victim1"};
    auto where = [&](const std::string& name, uint64_t offset, uint64_t bytes) {
        return name == "drive" ? storage.extent(name, offset, bytes) : place(name, offset, bytes);
    };

    random_source random(test_seed(1700));
    std::vector<std::pair<std::string, uint64_t>> pieces;
    for (const std::string& name : names) {
        for (uint64_t at = 0; at < place_bytes; at += piece_bytes) {
            pieces.emplace_back(name, at);
        }
    }
    random.shuffle(std::span(pieces));
    std::string list;
    for (const auto& [name, at] : pieces) {
        list += (list.empty() ? "" : ", ") + where(name, at, piece_bytes);
    }
    std::vector<std::byte> model(pieces.size() * piece_bytes);
    {
        test_daemon daemon(targets + disk_of("d", "queues = 2\nextents = [ " + list + " ]\n"));
        test_guest guest(daemon.device("d"), two_queue_guest());
        CHECK(guest.driver.config().blk_size == 4096); // the largest of them
        REQUIRE(guest.driver.write_zeroes({0, uint32_t(model.size() / sector_bytes), 0}).status ==
                blk_ok);
        run_options options;
        options.block_bytes = guest.driver.config().blk_size;
        options.max_bytes = 512 << 10; // crosses several pieces
        model_run run(guest.driver, model, test_seed(1701), options);
        run.run(scaled(4000, 400));
        CHECK(run.counts().write.count > 50);
    }

    // Each target for itself, which other tests compare with what the kernel's driver reads.
    std::string disks;
    for (const std::string& name : names) {
        disks += disk_of(name, "extents = [ " + where(name, 0, place_bytes) + " ]\nqueues = 2\n");
    }
    test_daemon daemon(targets + disks);
    for (const std::string& name : names) {
        INFO(name);
        test_guest guest(daemon.device(name), two_queue_guest());
        std::vector<std::byte> piece(piece_bytes);
        size_t wrong = 0;
        for (size_t i = 0; i < pieces.size(); i++) {
            if (pieces[i].first != name) {
                continue;
            }
            REQUIRE(guest.driver.read(pieces[i].second / sector_bytes, piece).status == blk_ok);
            wrong += !std::equal(piece.begin(), piece.end(),
                                 model.begin() + static_cast<ptrdiff_t>(i * piece_bytes));
        }
        CHECK(wrong == 0);
    }
}

namespace {

// How often the process has a controller of the module open.
size_t open_controllers(pid_t pid) {
    size_t n = 0;
    for (const auto& fd :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
        std::error_code closed_meanwhile;
        n += std::filesystem::read_symlink(fd, closed_meanwhile)
                 .string()
                 .starts_with("/dev/vqlane/nvme-");
    }
    return n;
}

} // namespace

TEST_CASE("namespaces that a disk names are opened with it, all or none, and closed with it",
          "[.][namespaces]") {
    needs_vdpa_world();
    test_daemon daemon("");
    control_client control = daemon.control();
    const std::string first = "nvme:" + victim_address(0) + "/1";
    const std::string second = "nvme:" + victim_address(1) + "/1";
    const std::string absent = "nvme:" + victim_address(1) + "/99";
    auto over = [](const std::string& a, const std::string& b) {
        nlohmann::json extents = nlohmann::json::array();
        for (const std::string& target : {a, b}) {
            extents.push_back({{"target", target}, {"offset", 0}, {"length", place_bytes}});
        }
        return disk_add({{"name", "d"}, {"extents", extents}});
    };
    CHECK_THAT(control.error(over(first, absent)), ContainsSubstring(absent));
    for (deadline closed(default_timeout()); open_controllers(daemon.pid()) != 0;) {
        REQUIRE_FALSE(closed.passed());
        usleep(1000);
    }
    control.result(over(first, second));
    CHECK(open_controllers(daemon.pid()) == 2);
    {
        test_guest guest(daemon.device("d"));
        std::vector<std::byte> data(piece_bytes), read(piece_bytes);
        for (uint64_t at : {uint64_t{0}, place_bytes / sector_bytes}) {
            random_source(at + 1).fill(data);
            REQUIRE(guest.driver.write(at, data).status == blk_ok);
            REQUIRE(guest.driver.read(at, read).status == blk_ok);
            CHECK(read == data);
        }
    }
    // When the answer is here, another may have the drives.
    daemon.remove("d");
    CHECK(open_controllers(daemon.pid()) == 0);
}

TEST_CASE("a namespace that is detached fails its disks' requests, and serves again when it is "
          "attached as it was",
          "[.][detached]") {
    test_storage storage;
    storage.add("t", disk_bytes);
    storage.add_file("other", disk_bytes);
    test_daemon daemon(storage.targets() + storage.disk("victim0", "t", "queues = 2\n") +
                       storage.disk("other", "other"));
    bystander other(daemon.device("other"), disk_bytes, test_seed(1710));
    victim_guest victim(daemon, 0);
    const std::string offline = "offline: I/O fails until it is restored: it ";
    const std::string back = "online again";
    victim.lose("detach");
    CHECK(daemon.wait_log(offline + "is not there"));
    CHECK(other.goes_on());
    let_case("attach");
    CHECK(daemon.wait_log(back));
    victim.goes_on();
    CHECK(other.goes_on());

    // Blocks of 4096 bytes where they were of 512; the drive would take commands for them.
    const size_t until_here = daemon.log().size();
    let_case("format");
    CHECK(daemon.wait_log(offline + "has blocks of 4096 bytes now, not of 512", until_here));
    victim.restart();
    std::vector<std::byte> sector(sector_bytes);
    for (unsigned i = 0; i < 20; i++) {
        CHECK(victim.guest.driver.read(i, sector).status == blk_ioerr);
        CHECK(victim.guest.driver.write(i, sector).status == blk_ioerr);
    }
    CHECK(other.goes_on());
    let_case("format_back");
    CHECK(daemon.wait_log(back, until_here));
    random_source(1711).fill(sector);
    CHECK(victim.guest.driver.write(7, sector).status == blk_ok);
    std::vector<std::byte> read(sector_bytes);
    CHECK(victim.guest.driver.read(7, read).status == blk_ok);
    CHECK(read == sector);
    CHECK(other.goes_on());
    CHECK(other.stop() == "");
}

// One that answers no admin command: opening a controller takes several.
TEST_CASE("a drive that answers no admin command keeps nobody waiting but its own disks",
          "[.][drive-silent]") {
    test_storage storage;
    storage.add_file("other", disk_bytes);
    test_daemon daemon(storage.targets() + storage.disk("other", "other"));
    bystander other(daemon.device("other"), disk_bytes, test_seed(1720));
    let_case("silence");
    auto adds = std::async(std::launch::async, [&] {
        const std::string target = "nvme:" + victim_address(0) + "/1";
        nlohmann::json extent = {{"target", target}, {"offset", 0}, {"length", disk_bytes}};
        return daemon.control().result(disk_add(
            {{"name", "victim0"}, {"extents", nlohmann::json::array({extent})}, {"queues", 2}}));
    });
    std::string problem;
    for (deadline silent(milliseconds(4000)); !silent.passed();) {
        deadline soon(milliseconds(10000)); // it is silent for a minute at least
        const auto victim = daemon.entry("victim0");
        CHECK_FALSE(soon.passed());
        CHECK(other.goes_on());
        problem = victim.is_null() ? "" : victim.at("problem").get<std::string>();
    }
    CHECK_THAT(problem, ContainsSubstring(victim_address(0)) && ContainsSubstring("being opened"));
    CHECK(adds.wait_for(std::chrono::seconds(0)) == std::future_status::timeout);
    let_case("answer");
    CHECK_NOTHROW(adds.get());
    victim_guest(daemon, 0).run.run(20);
    CHECK(other.stop() == "");
}

TEST_CASE("a daemon is ready when its drives have answered, and is answering meanwhile",
          "[.][drive-silent]") {
    test_storage storage;
    storage.add_file("other", disk_bytes);
    test_daemon daemon(storage.targets() + storage.disk("other", "other") +
                       victim_disk(0, disk_bytes));
    CHECK(daemon.terminate() == 0);
    let_case("silence");
    const size_t begun = daemon.log().size();
    daemon.begin();
    {
        bystander other(daemon.device("other"), disk_bytes, test_seed(1730));
        for (deadline silent(milliseconds(4000)); !silent.passed();) {
            CHECK(other.goes_on());
            const auto victim = daemon.entry("victim0");
            CHECK(victim.at("state") == "opening");
            CHECK_THAT(victim.at("problem"), ContainsSubstring(victim_address(0)));
        }
        CHECK(daemon.log().find("ready:", begun) == std::string::npos);
        let_case("answer");
        daemon.wait_ready();
        CHECK(daemon.entry("victim0").at("state") == "ready");
        CHECK(other.stop() == "");
    }
}

} // namespace vql::guest
