// SPDX-License-Identifier: GPL-2.0-only
// The control socket: what it does, what it refuses, and what garbage does to it (nothing).
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

std::string two_disks() {
    return null_target("n", "1G") + null_target("m", "1G") + disk_on("d", "n") +
           disk_of("e", "extents = [ { target = \"m\", offset = 0, length = \"512M\" } ]\n");
}

} // namespace

TEST_CASE("disks are added, listed and removed while others serve", "[control]") {
    temporary_directory files("/dev/shm");
    make_file(files / "image", 32 << 20);
    test_daemon daemon(two_disks());
    control_client control = daemon.control();
    test_guest first(daemon.device("d"));

    json request = disk_add({{"name", "f"},
                             {"file", files / "image"},
                             {"size", 16 << 20},
                             {"queues", 2},
                             {"queue_size", 64}});
    if (!vdpa_world()) {
        request["socket_mode"] = "0660";
    }
    json added = control.result(request);
    const std::string path = daemon.device("f");
    std::future<void> removed;
    CHECK(added.at("name") == "f");
    CHECK(added.at("size") == 16 << 20);
    CHECK(added.at("queues") == 2);
    CHECK(added.at("queue_size") == 64);
    CHECK(added.at("connected") == false);
    if (vdpa_world()) {
        CHECK(added.at("frontend") == "vdpa");
        CHECK(added.at("device") == path);
    } else {
        CHECK(added.at("socket") == path);
        struct stat info {};
        REQUIRE(stat(path.c_str(), &info) == 0);
        CHECK((info.st_mode & 0777) == 0660);
    }
    CHECK(control.result({{"op", "disk_list"}}).size() == 3);
    {
        guest_options options;
        options.blk.queues = 2;
        options.blk.queue_size = 64;
        options.blk.depth = 16;
        test_guest guest(path, options);
        std::vector<std::byte> model(16 << 20);
        model_run run(guest.driver, model, test_seed(800));
        run.run(scaled(300, 50));
        CHECK(compare_backing(model, {{files / "image", 0, 16 << 20}}) == 16 << 20);

        std::string error = control.error({{"op", "disk_rm"}, {"name", "f"}});
        CHECK_THAT(error, ContainsSubstring("f") && ContainsSubstring("force"));
        CHECK(guest.driver.flush().status == blk_ok);
        removed = daemon.remove_by_force("f");
        CHECK(guest.disk_lost());
    }
    removed.get();
    CHECK(control.result({{"op", "disk_list"}}).size() == 2);
    CHECK_FALSE(std::filesystem::exists(path));

    // Its name, its socket and its file are free again.
    control.result(disk_add({{"name", "f"}, {"file", files / "image"}}));
    test_guest again(daemon.device("f"));
    CHECK(again.driver.capacity() == (32 << 20) / sector_bytes);
    CHECK(first.driver.flush().status == blk_ok);
}

TEST_CASE("a forced removal under load ends the client's connection and nothing else",
          "[control]") {
    temporary_directory files("/dev/shm");
    test_daemon daemon(two_disks());
    control_client control = daemon.control();
    test_guest other(daemon.device("d"));
    for (int round = 0; round < 5; round++) {
        make_file(files / "image", 16 << 20);
        control.result(disk_add({{"name", "f"}, {"file", files / "image"}}));
        guest_options options;
        options.blk.depth = 16;
        auto guest = std::make_unique<test_guest>(daemon.device("f"), options);
        std::vector<std::byte> model(16 << 20);
        model_run run(guest->driver, model, test_seed(810));
        run.start(1000);
        run.step();
        run.step();
        std::future<void> removed = daemon.remove_by_force("f");
        CHECK(guest->disk_lost());
        CHECK(other.driver.flush().status == blk_ok);
        guest.reset();
        removed.get();
    }
}

TEST_CASE("a file whose disk was removed can be taken for another disk at once", "[control]") {
    temporary_directory files("/dev/shm");
    make_file(files / "image", 16 << 20);
    test_daemon daemon(two_disks());
    control_client control = daemon.control();
    for (uint64_t round = scaled(100, 20); round > 0; round--) {
        control.result(disk_add({{"name", "f"}, {"file", files / "image"}}));
        control.result({{"op", "disk_rm"}, {"name", "f"}});
    }
    control.result(disk_add({{"name", "f"}, {"file", files / "image"}}));
    guest_options options;
    options.blk.depth = 16;
    test_guest guest(daemon.device("f"), options);
    std::vector<std::byte> model(16 << 20);
    model_run run(guest.driver, model, test_seed(820));
    run.run(scaled(300, 50));
}

TEST_CASE("what cannot be done is refused with the reason", "[control]") {
    test_daemon daemon(two_disks());
    control_client control = daemon.control();
    struct refusal {
        json request;
        const char* names;
    };
    std::vector<refusal> table = {
        {{{"op", "disk_rm"}, {"name", "x"}}, "x"},
        {{{"op", "disk_resize"}, {"name", "x"}, {"size", 1 << 30}}, "x"},
        {{{"op", "disk_policy"}, {"name", "x"}, {"object", "/p.o"}}, "disk x does not exist"},
        {{{"op", "disk_policy"}, {"name", "d"}, {"object", "/p.o"}},
         vdpa_world() ? "lane = \"auto\"" : "frontend = \"vdpa\""},
        {{{"op", "disk_policy"}, {"name", "d"}, {"object", nullptr}},
         vdpa_world() ? "has no policy" : "frontend = \"vdpa\""},
        {{{"op", "disk_policy"}, {"name", "d"}, {"object", "p.o"}}, "object: an absolute path"},
        {{{"op", "disk_policy"}, {"name", "d"}}, "object: missing"},
        {{{"op", "stats"}, {"name", "x"}}, "x"},
        {{{"op", "disk_add"}, {"name", "d"}, {"target", "m"}}, "d"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "nosuch"}}, "nosuch"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "n"}}, "n"},
        {{{"op", "disk_add"}, {"name", "g"}}, "target"},
        {{{"op", "disk_add"}, {"name", "g"}, {"file", "/nonexistent/x"}}, "/nonexistent/x"},
        {{{"op", "disk_add"}, {"name", "g"}, {"file", "/tmp"}}, "/tmp"},
        {{{"op", "disk_add"}, {"name", "g/h"}, {"target", "m"}}, "name"},
        {{{"op", "disk_add"}, {"name", ""}, {"target", "m"}}, "name"},
        {{{"op", "disk_add"}, {"name", 5}, {"target", "m"}}, "name"},
        {{{"op", "disk_add"}, {"target", "m"}}, "name"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "m"}, {"queues", 0}}, "queues"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "m"}, {"queues", 1.5}}, "queues"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "m"}, {"queues", -1}}, "queues"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "m"}, {"queue_size", 100}}, "queue_size"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "m"}, {"size", 100}}, "size"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "m"}, {"size", "2G"}}, "size"},
        {{{"op", "disk_add"}, {"name", "g"}, {"target", "m"}, {"colour", "red"}}, "colour"},
        {{{"op", "disk_add"},
          {"name", "g"},
          {"extents", {{{"target", "m"}, {"offset", 0}, {"length", "64K"}}}}},
         "e"}, // overlaps disk e
        {{{"op", "disk_add"},
          {"name", "g"},
          {"extents", {{{"target", "m"}, {"offset", "1G"}, {"length", "64K"}}}}},
         "m"},
        {{{"op", "disk_add"}, {"name", "g"}, {"extents", "all"}}, "extents"},
        {{{"op", "disk_add"}, {"name", "g"}, {"extents", json::array()}}, "extents"},
    };
    if (!vdpa_world()) {
        table.push_back({{{"op", "disk_add"},
                          {"name", "g"},
                          {"extents", {{{"target", "m"}, {"offset", "512M"}, {"length", "64K"}}}},
                          {"socket", daemon.socket("d")}},
                         "d.sock"});
    }
    for (const refusal& odd : table) {
        INFO(odd.request.dump());
        CHECK_THAT(control.error(odd.request), ContainsSubstring(odd.names));
        CHECK(control.result({{"op", "disk_list"}}).size() == 2);
    }
    test_guest guest(daemon.device("d"));
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("a daemon that cannot listen for commands ends, and names the socket", "[control]") {
    test_daemon daemon(two_disks());
    CHECK(daemon.terminate() == 0);
    const std::string in_the_way = daemon.control_socket();
    std::filesystem::create_directory(in_the_way);
    REQUIRE_THROWS_WITH(daemon.start(), ContainsSubstring("ended at its start with status 1") &&
                                            ContainsSubstring(in_the_way));
    std::filesystem::remove(in_the_way);
    daemon.start();
}

TEST_CASE("garbage on the control socket gets an error, and the daemon lives", "[control]") {
    test_daemon daemon(two_disks());
    test_guest guest(daemon.device("d"));
    const std::string lines[] = {
        "",
        "hello",
        "{",
        "[]",
        "5",
        "null",
        "\"disk_list\"",
        "{}",
        "{\"op\":5}",
        "{\"op\":null}",
        "{\"op\":\"nonsense\"}",
        "{\"op\":[\"disk_list\"]}",
        "{\"op\":\"disk_rm\",\"name\":{}}",
        "{\"op\":\"disk_rm\",\"name\":\"d\",\"force\":\"yes\"}",
        "{\"op\":\"disk_resize\",\"name\":\"d\",\"size\":-1}",
        "{\"op\":\"disk_resize\",\"name\":\"d\",\"size\":1e300}",
        "{\"op\":\"disk_resize\",\"name\":\"d\",\"size\":99999999999999999999999999}",
        "{\"op\":\"stats\",\"name\":[]}",
        "{\"op\":\"disk_list\",\"more\":1}",
        "\xff\xfe\x80{\"op\":\"\xff\"}",
        "{\"op\":\"\xed\xa0\x80\"}",
        std::string(5000, '['),
        std::string(300000, '['),
        "{\"op\":" + std::string(100000, '{') + "}",
    };
    for (const std::string& line : lines) {
        INFO(line.substr(0, 60));
        control_client control = daemon.control();
        control.send_text(line + "\n");
        json reply = json::parse(control.receive_line());
        CHECK(reply.at("ok") == false);
        CHECK_FALSE(reply.at("error").get<std::string>().empty());
        // The same connection is still good.
        CHECK(control.result({{"op", "disk_list"}}).size() == 2);
    }

    control_client huge = daemon.control();
    std::string reply;
    try {
        for (int i = 0; i < 64; i++) {
            huge.send_text(std::string(1 << 20, 'x'));
        }
        huge.send_text("\n");
    } catch (const guest_error&) {
        // It stopped reading us.
    }
    bool closed = false;
    try {
        reply = huge.receive_line();
    } catch (const disconnected&) {
        closed = true; // with the answer lost behind our flood
    }
    CHECK((closed || json::parse(reply).at("ok") == false));
    CHECK(daemon.control().result({{"op", "disk_list"}}).size() == 2);
    CHECK(guest.driver.flush().status == blk_ok);
}

TEST_CASE("requests in pieces, in bulk and half a request are handled", "[control]") {
    test_daemon daemon(two_disks());
    control_client pieces = daemon.control();
    for (char c : std::string("{\"op\":\"disk_list\"}\n")) {
        pieces.send_text(std::string(1, c));
    }
    CHECK(json::parse(pieces.receive_line()).at("ok") == true);

    control_client bulk = daemon.control();
    std::string many;
    for (int i = 0; i < 500; i++) {
        many += i % 2 == 0 ? "{\"op\":\"disk_list\"}\n" : "{\"op\":\"x\"}\n";
    }
    bulk.send_text(many);
    for (int i = 0; i < 500; i++) {
        CHECK(json::parse(bulk.receive_line()).at("ok") == (i % 2 == 0));
    }

    std::vector<control_client> silent;
    for (int i = 0; i < 8; i++) {
        silent.push_back(daemon.control());
        silent.back().send_text("{\"op\":");
    }
    control_client end = daemon.control();
    end.send_text("{\"op\":\"disk_list\"}");
    end.finish_sending();
    // A line without its end is no request: it may be answered with an error, or not at all.
    bool answered = true;
    try {
        end.receive_line();
    } catch (const disconnected&) {
        answered = false;
    }
    INFO("answered: " << answered);
    CHECK(daemon.control().result({{"op", "disk_list"}}).size() == 2);
}

TEST_CASE("a client that does not read its replies holds up nobody", "[control]") {
    test_daemon daemon(two_disks());
    control_client deaf = daemon.control();
    std::string many;
    for (int i = 0; i < 2000; i++) {
        many += "{\"op\":\"stats\"}\n";
    }
    std::thread sender([&deaf, &many] {
        try {
            deaf.send_text(many);
        } catch (const guest_error&) {
            // The daemon may close the connection instead.
        }
    });
    CHECK(daemon.control().result({{"op", "disk_list"}}).size() == 2);
    test_guest guest(daemon.device("d"));
    CHECK(guest.driver.flush().status == blk_ok);
    deaf.finish_sending();
    sender.join();
    CHECK(daemon.control().result({{"op", "disk_list"}}).size() == 2);
}

} // namespace vql::guest
