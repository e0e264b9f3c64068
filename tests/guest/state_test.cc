// SPDX-License-Identifier: GPL-2.0-only
// What an operator did by command stays done: over a restart, a SIGKILL at any moment, and where it
// cannot be kept it is not done.
#include "e2e.h"

#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

std::set<std::string> names(const test_daemon& daemon) {
    std::set<std::string> all;
    for (const json& disk : daemon.control().result({{"op", "disk_list"}})) {
        all.insert(disk.at("name"));
    }
    return all;
}

// Of a disk that is there. The lock of a daemon that was killed may go a moment after it: until
// then the next one's disk waits for it, and has no size.
uint64_t size_of(const test_daemon& daemon, const std::string& name) {
    deadline until(default_timeout());
    uint64_t size = 0;
    do {
        if (const json disk = daemon.entry(name); !disk.is_null())
            size = disk.at("size");
    } while (size == 0 && !until.passed() && usleep(10000) == 0);
    return size;
}

void again(test_daemon& daemon, bool kill = true) {
    if (kill) {
        daemon.kill();
    } else {
        CHECK(daemon.terminate() == 0);
    }
    daemon.start();
}

using set = std::set<std::string>;

} // namespace

TEST_CASE("disks that commands made, resized and removed are so after a restart", "[state]") {
    temporary_directory files("/dev/shm");
    for (const char* name : {"f", "g", "h"}) {
        make_file(files / name, 16 << 20);
    }
    test_daemon daemon(null_target("n", "1G") + null_target("m", "1G") + disk_on("d", "n") +
                       disk_on("e", "m", "size = \"512M\"\n"));
    {
        control_client control = daemon.control();
        control.result(disk_add({{"name", "f"}, {"file", files / "f"}, {"queues", 2}}));
        control.result(disk_add({{"name", "g"}, {"file", files / "g"}}));
        control.result(disk_add({{"name", "h"}, {"file", files / "h"}, {"transient", true}}));
        control.result({{"op", "disk_resize"}, {"name", "f"}, {"size", 32 << 20}});
        control.result({{"op", "disk_resize"}, {"name", "e"}, {"size", 768 << 20}});
        control.result({{"op", "disk_rm"}, {"name", "g"}});
        control.result({{"op", "disk_rm"}, {"name", "d"}});
    }
    for (bool kill : {true, false}) {
        again(daemon, kill);
        CHECK(names(daemon) == set{"e", "f"});
        CHECK(size_of(daemon, "f") == 32 << 20);
        CHECK(size_of(daemon, "e") == 768 << 20);
        CHECK(daemon.wait_log("disk d is in the configuration, but was removed by command"));
        test_guest guest(daemon.device("f"));
        CHECK(guest.driver.capacity() == (32 << 20) / sector_bytes);
        CHECK(guest.driver.flush().status == blk_ok);
    }
    // It is not added by another way than the one that it went.
    CHECK_THAT(daemon.control().error(disk_add({{"name", "d"}, {"target", "n"}})),
               ContainsSubstring("vqlane reload"));
    json report = daemon.control().result({{"op", "reload"}});
    CHECK(report.at("added") == json{"d"});
    CHECK(report.at("refused").empty());
    CHECK(names(daemon) == set{"d", "e", "f"});
    again(daemon);
    CHECK(names(daemon) == set{"d", "e", "f"});
    CHECK(size_of(daemon, "e") == 768 << 20);
    if (vdpa_world()) // the module keeps what the first daemon had when it was killed
        daemon.control().result({{"op", "disk_rm"}, {"name", "h"}});
}

TEST_CASE("a transient change is of this daemon only", "[state]") {
    vhost_user_only only("disks of the module outlive the daemon anyway");
    test_daemon daemon(null_target("n", "1G") + null_target("m", "1G") + disk_on("d", "n") +
                       disk_on("e", "m", "size = \"512M\"\n"));
    daemon.control().result({{"op", "disk_rm"}, {"name", "d"}, {"transient", true}});
    daemon.control().result(
        {{"op", "disk_resize"}, {"name", "e"}, {"size", 768 << 20}, {"transient", true}});
    again(daemon);
    CHECK(names(daemon) == set{"d", "e"});
    CHECK(size_of(daemon, "e") == 512 << 20);
}

TEST_CASE("what cannot be kept is not done", "[state]") {
    temporary_directory files("/dev/shm");
    make_file(files / "f", 16 << 20);
    make_file(files / "g", 16 << 20);
    const std::string state = files / "state";
    test_daemon daemon(null_target("n", "1G") + null_target("m", "1G") + disk_on("d", "n") +
                           disk_on("e", "m", "size = \"512M\"\n"),
                       {"--state-dir", state});
    daemon.control().result(disk_add({{"name", "f"}, {"file", files / "f"}}));
    std::filesystem::create_directories(state + "/new.tmp/in the way");
    test_guest guest(daemon.device("e"));
    control_client control = daemon.control();
    for (const json& request :
         {disk_add({{"name", "g"}, {"file", files / "g"}}), json{{"op", "disk_rm"}, {"name", "d"}},
          json{{"op", "disk_resize"}, {"name", "e"}, {"size", 768 << 20}},
          json{{"op", "disk_resize"}, {"name", "f"}, {"size", 32 << 20}}}) {
        INFO(request.dump());
        CHECK_THAT(control.error(request),
                   ContainsSubstring("kept for the next start") && ContainsSubstring(state));
    }
    CHECK(names(daemon) == set{"d", "e", "f"});
    CHECK(size_of(daemon, "e") == 512 << 20);
    CHECK(std::filesystem::file_size(files / "f") == 16 << 20);
    CHECK(guest.driver.flush().status == blk_ok);
    // Its file is free, and what need not be kept is done.
    control.result(disk_add({{"name", "g"}, {"file", files / "g"}, {"transient", true}}));
    std::filesystem::remove_all(state + "/new.tmp");
    control.result({{"op", "disk_rm"}, {"name", "d"}});
}

TEST_CASE("a command that is refused leaves what is kept as it was", "[state]") {
    temporary_directory files("/dev/shm");
    make_file(files / "f", 16 << 20);
    test_daemon daemon(null_target("n", "1G") + disk_on("d", "n"));
    control_client control = daemon.control();
    control.result(disk_add({{"name", "f"}, {"file", files / "f"}}));
    {
        test_guest guest(daemon.device("f"));
        CHECK_THAT(control.error({{"op", "disk_rm"}, {"name", "f"}}), ContainsSubstring("force"));
        control.error({{"op", "disk_resize"}, {"name", "f"}, {"size", 8 << 20}});
        control.error({{"op", "disk_resize"}, {"name", "f"}, {"size", (16 << 20) + 1}});
        control.error({{"op", "disk_resize"}, {"name", "f"}, {"size", 1ull << 62}});
        control.error(disk_add({{"name", "g"}, {"file", files / "none"}}));
    }
    CHECK(std::filesystem::file_size(files / "f") == 16 << 20);
    const std::string note = daemon.directory() / "state/disk-f.toml";
    const std::string before = read_text_file(note);
    for (int i = 0; i < 20; i++) { // refused by storage, when what is kept may be written already
        control.error({{"op", "disk_resize"}, {"name", "f"}, {"size", 1ull << 62}});
        REQUIRE(read_text_file(note) == before);
    }
    again(daemon);
    CHECK(names(daemon) == set{"d", "f"});
    CHECK(size_of(daemon, "f") == 16 << 20);
}

TEST_CASE("a size that a command gave a disk stays with its file", "[state]") {
    vhost_user_only only("a disk that the module has cannot shrink");
    temporary_directory files("/dev/shm");
    make_file(files / "f", 16 << 20);
    make_file(files / "g", 16 << 20);
    const std::string config = null_target("n", "1G") + disk_on("d", "n");
    const auto in_files = [&](const std::string& file) {
        return "[[disk]]\nname = \"f\"\nfile = \"" + file + "\"\n";
    };
    test_daemon daemon(config);
    daemon.control().result(disk_add({{"name", "f"}, {"file", files / "f"}}));
    daemon.control().result({{"op", "disk_resize"}, {"name", "f"}, {"size", 24 << 20}});
    const std::string path = daemon.directory() / "vqlaned.toml";
    SECTION("the same file comes into the configuration") {
        write_text_file(path, config + in_files(files / "f"));
        daemon.control().result({{"op", "reload"}});
        CHECK(size_of(daemon, "f") == 24 << 20);
    }
    SECTION("another one does") {
        write_text_file(path, config + in_files(files / "g"));
        const json report = daemon.control().result({{"op", "reload"}});
        CHECK(report.at("replaced") == json::array({"f"}));
        CHECK(size_of(daemon, "f") == 16 << 20);
    }
    SECTION("another one does, at a start") {
        write_text_file(path, config + in_files(files / "g"));
        again(daemon, false);
        CHECK(size_of(daemon, "f") == 16 << 20);
    }
    CHECK(std::filesystem::file_size(files / "g") == 16 << 20);
    // One that is not there yet is told as waiting.
    write_text_file(path, config + disk_on("late", "l") + file_target("l", files / "none"));
    const json report = daemon.control().result({{"op", "reload"}});
    CHECK(report.at("waiting").at(0).at("name") == "late");
}

TEST_CASE("a damaged note is named, and loses no other disk", "[state]") {
    temporary_directory files("/dev/shm");
    make_file(files / "f", 16 << 20);
    make_file(files / "g", 16 << 20);
    test_daemon daemon(null_target("n", "1G") + disk_on("d", "n"), {"--state-dir", files / "s"});
    daemon.control().result(disk_add({{"name", "f"}, {"file", files / "f"}}));
    daemon.control().result(disk_add({{"name", "g"}, {"file", files / "g"}}));
    CHECK(daemon.terminate() == 0);
    std::filesystem::resize_file(files / "s/disk-f.toml", 80);
    daemon.start();
    CHECK(daemon.wait_log("error: " + (files / "s/disk-f.toml")));
    const set there = names(daemon);
    CHECK(there.contains("d"));
    CHECK(there.contains("g"));
    CHECK_FALSE(there.contains("f"));
    if (vdpa_world()) {
        daemon.control().result({{"op", "disk_rm"}, {"name", "f"}, {"force", true}});
    }
}

TEST_CASE("a growth that was promised is made up for by the next daemon", "[state]") {
    vhost_user_only only("the same code, and a disk's shape in the module would have to match");
    temporary_directory files("/dev/shm");
    make_file(files / "f", 16 << 20);
    test_daemon daemon(null_target("n", "1G") + disk_on("d", "n"), {"--state-dir", files / "s"});
    daemon.control().result(disk_add({{"name", "f"}, {"file", files / "f"}}));
    daemon.kill();
    // As if it had died between its note and the file.
    write_text_file(files / "s/disk-f.toml", read_text_file(files / "s/disk-f.toml") +
                                                 "\n[[resized]]\nname = \"f\"\nsize = \"24M\"\n");
    daemon.start();
    CHECK(daemon.wait_log("disk f: listening on"));
    CHECK(size_of(daemon, "f") == 24 << 20);
    CHECK(std::filesystem::file_size(files / "f") == 24 << 20);
}

TEST_CASE("a SIGKILL at any moment loses no command that was answered", "[state]") {
    vhost_user_only only("what the module keeps of a killed daemon's disks is vdpa_crash_test's");
    temporary_directory files("/dev/shm");
    constexpr unsigned many = 4;
    for (unsigned i = 0; i < many; i++) {
        make_file(files / std::to_string(i), 1 << 20);
    }
    test_daemon daemon(null_target("n", "1G") + disk_on("d", "n"));
    struct known {
        bool there = false, sure = true;
        uint64_t size = 0, promised = 0; // at least, and at most
    };
    std::array<known, many> disks;
    std::mt19937_64 random(test_seed(2000));
    uint64_t answered = 0;
    // On a slow machine a daemon may be killed before it answers anything: so long it goes on.
    deadline until(3 * default_timeout());
    for (uint64_t round = 0, most = scaled(40, 10);
         round < most || (answered <= 10 && !until.passed()); round++) {
        std::thread killer([&daemon, pause = random() % 200000] {
            usleep(useconds_t(pause));
            kill(daemon.pid(), SIGKILL);
        });
        try {
            control_client control = daemon.control();
            for (;;) {
                const unsigned i = unsigned(random() % many);
                known& k = disks[i];
                const std::string name = "x" + std::to_string(i);
                if (!k.there) {
                    k = {false, false, 1 << 20, 1 << 20};
                    k.size = k.promised = std::filesystem::file_size(files / std::to_string(i));
                    control.result(disk_add({{"name", name}, {"file", files / std::to_string(i)}}));
                    k.there = k.sure = true;
                } else if (random() % 2) {
                    k.promised = k.size + (64 << 10);
                    control.result({{"op", "disk_resize"}, {"name", name}, {"size", k.promised}});
                    k.size = k.promised;
                } else {
                    k.sure = false;
                    control.result({{"op", "disk_rm"}, {"name", name}});
                    k.there = false;
                    k.sure = true;
                }
                answered++;
            }
        } catch (const guest_error&) {
            // It was killed.
        }
        killer.join();
        daemon.kill();
        daemon.start();
        CHECK(daemon.log().find("error: ") == std::string::npos);
        const set there = names(daemon);
        for (unsigned i = 0; i < many; i++) {
            known& k = disks[i];
            const std::string name = "x" + std::to_string(i);
            INFO(name << ": " << k.there << k.sure << " of " << k.size << " to " << k.promised);
            if (k.sure) {
                CHECK(there.contains(name) == k.there);
            }
            k.there = there.contains(name);
            k.sure = true;
            if (k.there) {
                const uint64_t size = size_of(daemon, name);
                CHECK((size == k.size || size == k.promised));
                k.size = k.promised = size;
            }
        }
    }
    INFO(answered);
    CHECK(answered > 10);
}

} // namespace vql::guest
