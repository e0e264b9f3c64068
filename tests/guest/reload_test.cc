// SPDX-License-Identifier: GPL-2.0-only
// `vqlane reload` and SIGHUP: the files are read again, and what differs is changed; nothing else
// is.
#include "e2e.h"

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

const std::string targets =
    null_target("m", "1G") + null_target("n", "1G") + null_target("o", "1G");

struct reloaded_daemon : test_daemon {
    using test_daemon::test_daemon;

    void write(const std::string& text) const {
        write_text_file(directory() / "vqlaned.toml", text);
    }
    json reload() const { return control().result({{"op", "reload"}}); }
};

json refusal(const json& report, const std::string& name) {
    for (const json& one : report.at("refused")) {
        if (one.at("name") == name) {
            return one.at("why");
        }
    }
    return nullptr;
}

} // namespace

TEST_CASE("a reload does what the files say, and touches nothing else", "[reload]") {
    temporary_directory files("/dev/shm");
    make_file(files / "f", 16 << 20);
    make_file(files / "g", 16 << 20);
    make_file(files / "t", 32 << 20);
    const std::string all = targets + file_target("t", files / "t");
    reloaded_daemon daemon(all + disk_on("a", "t", "size = \"16M\"\n") + disk_on("b", "n"));
    daemon.control().result(disk_add({{"name", "f"}, {"file", files / "f"}, {"transient", true}}));
    daemon.control().result(disk_add({{"name", "g"}, {"file", files / "g"}}));
    bystander guest(daemon.device("a"), 16 << 20, test_seed(2100));
    CHECK(guest.goes_on());

    json report = daemon.reload();
    for (const char* what : {"added", "removed", "replaced", "resized", "changed", "refused"}) {
        CHECK(report.at(what).empty());
    }
    daemon.write("[daemon]\nlog_level = \"debug\"\n" + all + disk_on("a", "t", "size = \"24M\"\n") +
                 disk_on("c", "o"));
    report = daemon.reload();
    CHECK(report.at("added") == json{"c"});
    CHECK(report.at("removed") == json{"b"});
    CHECK(report.at("resized") == json{"a"});
    CHECK(report.at("changed") == json{"daemon.log_level"});
    CHECK(report.at("refused").empty());
    CHECK(daemon.entry("a").at("size") == 24 << 20);
    CHECK(daemon.entry("b").is_null());
    CHECK_FALSE(daemon.entry("f").is_null());
    CHECK_FALSE(daemon.entry("g").is_null());
    CHECK(guest.goes_on());
    test_guest added(daemon.device("c"));
    CHECK(added.driver.flush().status == blk_ok);
    CHECK(guest.stop() == "");
}

TEST_CASE("a reload refuses by name what a guest would lose", "[reload]") {
    reloaded_daemon daemon(targets + disk_on("a", "m") + disk_on("b", "n") + disk_on("c", "o"));
    auto a = std::make_unique<test_guest>(daemon.device("a"));
    test_guest b(daemon.device("b"));
    daemon.write("[daemon]\nspin = \"always\"\n" + targets + disk_on("b", "n", "queues = 2\n") +
                 disk_on("c", "o", "queues = 2\n"));
    const json report = daemon.reload();
    CHECK_THAT(refusal(report, "a").get<std::string>(), ContainsSubstring("guest connected"));
    CHECK_THAT(refusal(report, "b").get<std::string>(), ContainsSubstring("guest is connected"));
    CHECK_THAT(refusal(report, "daemon.spin").get<std::string>(),
               ContainsSubstring("started again"));
    CHECK(report.at("replaced") == json{"c"});
    CHECK(daemon.entry("c").at("queues") == 2);
    CHECK(daemon.entry("b").at("queues") == 1);
    CHECK(a->driver.flush().status == blk_ok);
    CHECK(b.driver.flush().status == blk_ok);
    CHECK_THAT(daemon.log(), ContainsSubstring("warning: reload: b: "));
    // What was refused is done when it can be.
    a.reset();
    deadline until(default_timeout());
    while (daemon.entry("a").at("connected") == true) {
        REQUIRE_FALSE(until.passed());
        usleep(1000);
    }
    CHECK(daemon.reload().at("removed") == json{"a"});
    CHECK(daemon.entry("a").is_null());
}

TEST_CASE("files that are wrong change nothing at all", "[reload]") {
    reloaded_daemon daemon(targets + disk_on("a", "m"));
    test_guest guest(daemon.device("a"));
    for (const std::string& wrong :
         {std::string("[daemon\n"), "colour = 1\n" + targets + disk_on("b", "n"),
          targets + disk_on("b", "n") + disk_on("c", "n"),
          "[daemon]\npollers = [1023]\n" + targets + disk_on("b", "n")}) {
        INFO(wrong);
        daemon.write(wrong);
        CHECK_THAT(daemon.control().error({{"op", "reload"}}),
                   ContainsSubstring(daemon.directory() / "vqlaned.toml"));
        CHECK(daemon.control().result({{"op", "disk_list"}}).size() == 1);
        CHECK(guest.driver.flush().status == blk_ok);
    }
}

TEST_CASE("SIGHUP reloads, and the log says what it did", "[reload]") {
    reloaded_daemon daemon(targets + disk_on("a", "m"));
    test_guest guest(daemon.device("a"));
    size_t from = daemon.log().size();
    daemon.write(targets + disk_on("a", "m") + disk_on("b", "n"));
    kill(daemon.pid(), SIGHUP);
    CHECK(daemon.wait_log("reload: b added", from));
    CHECK(daemon.wait_log("reload: done", from));
    from = daemon.log().size();
    daemon.write("[daemon\n");
    kill(daemon.pid(), SIGHUP);
    CHECK(daemon.wait_log("error: reload: nothing is changed: ", from));
    for (int i = 0; i < 50; i++) {
        kill(daemon.pid(), SIGHUP);
    }
    daemon.write(targets + disk_on("a", "m"));
    kill(daemon.pid(), SIGHUP);
    CHECK(daemon.wait_log("reload: b removed", from));
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a reload gives a socket to others under its guest", "[reload]") {
    vhost_user_only only("a vDPA device's node belongs to whom udev says");
    reloaded_daemon daemon(targets + disk_on("a", "m"));
    test_guest guest(daemon.socket("a"));
    daemon.write(targets + disk_on("a", "m", "socket_group = 64055\n"));
    CHECK(daemon.reload().at("changed") == json{"a"});
    struct stat info {};
    REQUIRE(stat(daemon.socket("a").c_str(), &info) == 0);
    CHECK(info.st_gid == 64055);
    CHECK((info.st_mode & 0777) == 0660);
    daemon.write(targets + disk_on("a", "m"));
    CHECK(daemon.reload().at("changed") == json{"a"});
    REQUIRE(stat(daemon.socket("a").c_str(), &info) == 0);
    CHECK(info.st_gid == getegid());
    CHECK((info.st_mode & 0777) == 0600);
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a disk whose target is not there is added by a reload, and waits", "[reload]") {
    temporary_directory files("/dev/shm");
    reloaded_daemon daemon(targets + disk_on("a", "m"));
    daemon.write(targets + disk_on("a", "m") + file_target("t", files / "later") +
                 disk_on("b", "t"));
    CHECK(daemon.reload().at("added") == json{"b"});
    make_file(files / "later", 16 << 20);
    CHECK(daemon.wait_log("disk b: listening on"));
}

} // namespace vql::guest
