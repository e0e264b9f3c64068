// SPDX-License-Identifier: GPL-2.0-only
// By what a guest knows its disk: the serial number; and disks with long names.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <nlohmann/json.hpp>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;

namespace {

const std::string prefix(62, 'n');

std::string serial_of(const test_daemon& daemon, const std::string& disk) {
    test_guest guest(daemon.device(disk));
    std::string id;
    REQUIRE(guest.driver.get_id(id).status == blk_ok);
    CHECK(daemon.entry(disk).at("serial") == id);
    return id;
}

} // namespace

TEST_CASE("disks whose long names begin alike have serial numbers of their own", "[serial]") {
    test_daemon daemon(null_target("t", "1M") + null_target("u", "1M") + null_target("v", "1M") +
                       disk_on(prefix + "a", "t") + disk_on(prefix + "b", "u") +
                       disk_on("12345678901234567890", "v"));
    const std::string a = serial_of(daemon, prefix + "a"), b = serial_of(daemon, prefix + "b");
    CHECK(a != b);
    CHECK(a.size() == 20);
    CHECK(b.size() == 20);
    CHECK(serial_of(daemon, "12345678901234567890") == "12345678901234567890");
}

TEST_CASE("a serial number is said, and no two disks have the same", "[serial]") {
    test_daemon daemon(null_target("t", "1M") + null_target("u", "1M") +
                       disk_on("d", "t", "serial = \"WD-1234567890\"\n"));
    CHECK(serial_of(daemon, "d") == "WD-1234567890");
    control_client control = daemon.control();
    nlohmann::json add = disk_add({{"name", "e"}, {"target", "u"}, {"serial", "WD-1234567890"}});
    const std::string why = control.error(add);
    CHECK_THAT(why, ContainsSubstring("WD-1234567890") && ContainsSubstring("disk d"));
    add["serial"] = "21 characters or more"; // and blanks
    CHECK_THAT(control.error(add), ContainsSubstring("serial"));
    add["serial"] = "d"; // a name is taken only by the disk that has no other number
    control.result(add);
    CHECK(serial_of(daemon, "e") == "d");
    daemon.remove("d");
    control.result(disk_add({{"name", "f"}, {"target", "t"}, {"serial", "WD-1234567890"}}));
}

TEST_CASE("a kept disk that the configuration has no room for waits, and stops no other",
          "[serial]") {
    vhost_user_only only("the disks of a killed daemon stay in the module");
    temporary_directory files("/dev/shm");
    make_file(files / "f", 16 << 20);
    const std::string config = null_target("t", "1M") + disk_on("d", "t");
    test_daemon daemon(config);
    daemon.control().result(
        disk_add({{"name", "kept"}, {"file", files / "f"}, {"serial", "later"}}));
    CHECK(daemon.terminate() == 0);
    write_text_file(daemon.directory() / "vqlaned.toml",
                    config + null_target("u", "1M") + disk_on("later", "u"));
    daemon.start();
    for (const nlohmann::json& d : daemon.control().result({{"op", "disk_list"}})) {
        INFO(d.dump());
        CHECK(d.at("state") == (d.at("name") == "kept" ? "waiting" : "ready"));
        if (d.at("name") == "kept")
            CHECK_THAT(d.at("problem"), ContainsSubstring("serial number later"));
    }
    CHECK(serial_of(daemon, "later") == "later");
    // It is served as soon as there is room.
    daemon.remove("later");
    deadline until(default_timeout());
    while (daemon.entry("kept").at("state") != "ready" && !until.passed())
        usleep(100000);
    CHECK(serial_of(daemon, "kept") == "later");
}

} // namespace vql::guest
