// SPDX-License-Identifier: GPL-2.0-only
// A disk grows while its guest uses it.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;

namespace {

constexpr uint64_t mib = 1 << 20;

nlohmann::json resize(const std::string& disk, uint64_t bytes) {
    return {{"op", "disk_resize"}, {"name", disk}, {"size", bytes}};
}

uint64_t listed_size(control_client& control, const std::string& name) {
    for (const nlohmann::json& disk : control.result({{"op", "disk_list"}})) {
        if (disk.at("name") == name) {
            return disk.at("size");
        }
    }
    return 0;
}

struct resizable_daemon {
    test_storage storage;
    test_daemon daemon;
    resizable_daemon() : daemon(configuration()) {}
    std::string configuration() {
        storage.add_file("t", 64 * mib); // only a file grows with its disk
        storage.add("p", 64 * mib);
        return storage.targets() + storage.disk("d", "t", "size = \"32M\"\n") +
               disk_of("e", "size = \"32M\"\nextents = [ " +
                                storage.extent("p", 32 * mib, 16 * mib) + ", " +
                                storage.extent("p", 0, 32 * mib) + " ]\n");
    }
};

// The one that comes when rings start over vhost-user.
void take_first_change(test_guest& guest) {
    CHECK((vdpa_world() || guest.device.wait_config_change(default_timeout())));
}

} // namespace

TEST_CASE("a disk that grows under load tells its driver, and takes I/O in the new room",
          "[resize]") {
    resizable_daemon setup;
    control_client control = setup.daemon.control();
    guest_options options;
    options.blk.depth = 16;
    test_guest guest(setup.daemon.device("d"), options);
    take_first_change(guest);
    CHECK(guest.driver.capacity() == 32 * mib / sector_bytes);
    std::vector<std::byte> model(64 * mib);
    run_options part;
    part.sectors = 32 * mib / sector_bytes;
    model_run run(guest.driver, model, test_seed(300), part);
    std::vector<std::byte> block(4096, std::byte{3});
    CHECK(guest.driver.read(32 * mib / sector_bytes, block).status == blk_ioerr);

    for (uint64_t size : {40 * mib, 64 * mib}) {
        run.start(scaled(200, 20));
        for (int i = 0; i < 3; i++) {
            run.step(); // in flight while it grows
        }
        CHECK_FALSE(guest.device.wait_config_change(milliseconds(0)));
        control.result(resize("d", size));
        CHECK(listed_size(control, "d") == size);
        CHECK(guest.device.wait_config_change(default_timeout()));
        CHECK(guest.driver.capacity() == size / sector_bytes);
        run.drain();

        part.sectors = size / sector_bytes;
        run.set_options(part);
        run.run(scaled(300, 30));
        uint64_t last = size / sector_bytes - 8;
        REQUIRE(guest.driver.read(last, block).status == blk_ok);
        CHECK(guest.driver.read(last + 1, block).status == blk_ioerr);
        CHECK(guest.driver.write(last + 8, block).status == blk_ioerr);
    }
    CHECK(compare_backing(model, {setup.storage.part("t")}) == 64 * mib);
}

TEST_CASE("a resize that cannot be done is refused with the reason, and changes nothing",
          "[resize]") {
    resizable_daemon setup;
    control_client control = setup.daemon.control();
    test_guest guest(setup.daemon.device("e"));
    take_first_change(guest);
    CHECK_THAT(control.error(resize("e", 16 * mib)), ContainsSubstring("shrink"));
    CHECK_THAT(control.error(resize("e", 32 * mib - 512)), ContainsSubstring("shrink"));
    CHECK_THAT(control.error(resize("e", 0)), ContainsSubstring("e"));
    CHECK_THAT(control.error(resize("e", 49 * mib)), ContainsSubstring("50331648"));
    CHECK_THAT(control.error(resize("e", uint64_t{1} << 62)), ContainsSubstring("e"));
    CHECK_THAT(control.error(resize("e", 33 * mib + 1)), ContainsSubstring("512"));
    CHECK_THAT(control.error(resize("nosuch", 64 * mib)), ContainsSubstring("nosuch"));
    CHECK_FALSE(guest.device.wait_config_change(milliseconds(20)));
    CHECK(listed_size(control, "e") == 32 * mib);
    CHECK(guest.driver.capacity() == 32 * mib / sector_bytes);
    std::vector<std::byte> block(4096);
    CHECK(guest.driver.read(32 * mib / sector_bytes, block).status == blk_ioerr);
    CHECK(guest.driver.read(0, block).status == blk_ok);
}

TEST_CASE("a resize that is refused leaves the file as it was", "[resize]") {
    vhost_user_only skip("its subject is a file, and any front end will do");
    temporary_directory files;
    const std::string file = files / "image", fixed = files / "fixed";
    make_file(file, 64 * mib);
    make_file(fixed, 64 * mib);
    const std::string config = file_target("t", file) + file_target("u", fixed) +
                               disk_on("d", "t", "chunk_size = \"64K\"\n") +
                               disk_on("r", "u", "read_only = true\n");
    test_daemon daemon(config);
    control_client control = daemon.control();
    const std::pair<const char*, uint64_t> refused[] = {
        {"d", uint64_t{2} << 40}, // more chunks than a table has
        {"d", 32 * mib},          {"d", 64 * mib + 1},
        {"d", uint64_t{1} << 62}, // more than the file system has
        {"d", ~uint64_t{511}},    {"r", 128 * mib},
    };
    for (const auto& [disk, bytes] : refused) {
        INFO(disk << " " << bytes);
        CHECK_THAT(control.error(resize(disk, bytes)), ContainsSubstring(disk));
        CHECK(std::filesystem::file_size(file) == 64 * mib);
        CHECK(std::filesystem::file_size(fixed) == 64 * mib);
        CHECK(listed_size(control, disk) == 64 * mib);
    }
    // Nor does a disk that is refused.
    for (nlohmann::json add :
         {nlohmann::json{{"size", 128 * mib}}, nlohmann::json{{"chunk_size", 512}},
          nlohmann::json{{"extents", {{{"target", "t"}, {"offset", 64 * mib}}}}},
          nlohmann::json{{"serial", "d"}}, nlohmann::json{{"socket", "/nonexistent/folder/s"}}}) {
        const std::string other = files / "other";
        make_file(other, 64 * mib);
        add["op"] = "disk_add";
        add["name"] = "e";
        if (!add.contains("extents"))
            add["file"] = other;
        INFO(add.dump());
        control.error(add);
        CHECK(std::filesystem::file_size(other) == 64 * mib);
        CHECK(std::filesystem::file_size(file) == 64 * mib);
    }
    control.result(resize("d", 96 * mib));
    CHECK(std::filesystem::file_size(file) == 96 * mib);
    daemon.terminate();
    daemon.start();
    control_client again = daemon.control();
    CHECK(listed_size(again, "d") == 96 * mib);
}

TEST_CASE("a disk of extents grows as far as they reach", "[resize]") {
    resizable_daemon setup;
    test_guest guest(setup.daemon.device("e"));
    take_first_change(guest);
    std::vector<std::byte> data(2 * mib);
    random_source(test_seed(310)).fill(data);
    REQUIRE(guest.driver.write(0, data).status == blk_ok);
    setup.daemon.control().result(resize("e", 48 * mib));
    CHECK(guest.device.wait_config_change(default_timeout()));
    CHECK(guest.driver.capacity() == 48 * mib / sector_bytes);
    std::vector<std::byte> back(2 * mib);
    REQUIRE(guest.driver.read(0, back).status == blk_ok);
    CHECK(back == data);
    // The first 16 MiB of the disk are the target's last; the last of the disk is at its 32nd.
    REQUIRE(guest.driver.write(46 * mib / sector_bytes, data).status == blk_ok);
    CHECK(compare_backing(data, {setup.storage.part("p", 32 * mib, 2 * mib)}) == 2 * mib);
    CHECK(compare_backing(data, {setup.storage.part("p", 30 * mib, 2 * mib)}) == 2 * mib);
}

TEST_CASE("a disk that is a whole file grows with its file", "[resize]") {
    resizable_daemon setup;
    test_guest guest(setup.daemon.device("d"));
    take_first_change(guest);
    setup.daemon.control().result(resize("d", 80 * mib));
    CHECK(guest.device.wait_config_change(default_timeout()));
    std::vector<std::byte> data(2 * mib);
    random_source(test_seed(320)).fill(data);
    REQUIRE(guest.driver.write(78 * mib / sector_bytes, data).status == blk_ok);
    CHECK(compare_backing(data, {setup.storage.part("t", 78 * mib, 2 * mib)}) == 2 * mib);
}

TEST_CASE("a disk without a guest grows, and the next guest sees it", "[resize]") {
    resizable_daemon setup;
    setup.daemon.control().result(resize("d", 48 * mib));
    test_guest guest(setup.daemon.device("d"));
    CHECK(guest.driver.capacity() == 48 * mib / sector_bytes);
    std::vector<std::byte> block(4096);
    CHECK(guest.driver.write(48 * mib / sector_bytes - 8, block).status == blk_ok);
}

} // namespace vql::guest
