// SPDX-License-Identifier: GPL-2.0-only
#include "base/fd.h"
#include "base/nearest.h"
#include "cli/client.h"
#include "cli/disk.h"
#include "cli/stats.h"
#include "cli/table.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>

namespace {

using nlohmann::json;
using namespace std::chrono_literals;

// The daemon's side of a control socket for one client; @serve gets the connection. @serve_others:
// those of others after it, which are accepted only then.
class fake_daemon {
  public:
    explicit fake_daemon(std::function<void(int)> serve,
                         std::function<void(int)> serve_others = nullptr) {
        std::string dir = (std::filesystem::temp_directory_path() / "vqlane-XXXXXX").string();
        REQUIRE(::mkdtemp(dir.data()));
        path_ = dir + "/control.sock";
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
        fd_.reset(::socket(AF_UNIX, SOCK_STREAM, 0));
        REQUIRE(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
        REQUIRE(::listen(fd_.get(), 1) == 0);
        thread_ =
            std::thread([this, serve = std::move(serve), serve_others = std::move(serve_others)] {
                const vql::unique_fd connection(::accept(fd_.get(), nullptr, nullptr));
                std::thread others([&] {
                    while (serve_others) {
                        const vql::unique_fd other(::accept(fd_.get(), nullptr, nullptr));
                        if (!other)
                            return;
                        serve_others(other.get());
                    }
                });
                serve(connection.get());
                if (serve_others)
                    ::shutdown(fd_.get(), SHUT_RDWR);
                others.join();
            });
    }
    ~fake_daemon() {
        ::shutdown(fd_.get(), SHUT_RDWR); // ends an accept that nobody came for
        thread_.join();
        std::filesystem::remove_all(std::filesystem::path(path_).parent_path());
    }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
    vql::unique_fd fd_;
    std::thread thread_;
};

std::string read_line(int fd) {
    std::string line;
    char c = 0;
    while (::read(fd, &c, 1) == 1 && c != '\n')
        line += c;
    return line;
}

void send_text(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t n = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
        if (n <= 0)
            return;
        text.remove_prefix(static_cast<size_t>(n));
    }
}

// What call() gives for a daemon that answers with @answer: the result as text, or the error.
std::string called(const std::string& answer) {
    const fake_daemon daemon([&](int fd) {
        read_line(fd);
        send_text(fd, answer);
    });
    auto client = vql::client::connect(daemon.path(), 5s);
    REQUIRE(client);
    auto value = client->call({{"op", "x"}});
    std::string text = value ? value->dump() : "error: " + value.failure().text;
    if (const size_t at = text.find(daemon.path()); at != text.npos)
        text.replace(at, daemon.path().size(), "PATH");
    return text;
}

json op(uint64_t count, uint64_t bytes) {
    return {
        {"requests", count},
        {"bytes", bytes},
        {"errors", 2},
        {"latency_ns",
         {{"avg", 20000}, {"p50", 18000}, {"p99", 90000}, {"p999", 1500000}, {"max", 2000000000}}},
        {"size_bytes", {{"p50", 4096}, {"p99", 65536}}}};
}

json stats(uint64_t reads, uint64_t bytes) {
    json ops;
    for (const char* name :
         {"read", "write", "flush", "discard", "write_zeroes", "get_id", "other"})
        ops[name] = op(0, 0);
    json busy = ops;
    busy["read"] = op(reads, bytes);
    busy["flush"] = op(3, 0);
    return {{"disks", {{{"name", "vm1"}, {"ops", busy}}, {{"name", "vm2"}, {"ops", ops}}}},
            {"pollers",
             {{{"cpu", 3},
               {"requests", reads + 3},
               {"wakeups", 7},
               {"sleeps", 6},
               {"busy_ns", reads * 1000000}}}}};
}

TEST_CASE("a table's columns are as wide as their widest cell", "[cli]") {
    vql::table table({{"NAME"}, {"SIZE", true}, {"X"}});
    table.add({"a", "1.5G", "x"});
    table.add({"longer", "1", ""});
    CHECK(table.text() == "NAME    SIZE  X\n"
                          "a       1.5G  x\n"
                          "longer     1\n");
}

TEST_CASE("a table's row stays on its line", "[cli]") {
    vql::table table({{"A"}, {"B"}});
    table.add({"x\n\033[2Jy", "\x7f"});
    CHECK(table.text() == "A        B\nx??[2Jy  ?\n");
    vql::table empty({{"A"}, {"B"}});
    CHECK(empty.text() == "A  B\n");
    empty.add({"1"});
    CHECK(empty.text() == "A  B\n1\n");
}

TEST_CASE("sizes are shown with at most one decimal", "[cli]") {
    const std::pair<uint64_t, const char*> cases[] = {
        {0, "0"},
        {512, "512"},
        {1023, "1023"},
        {1024, "1K"},
        {1536, "1.5K"},
        {65536, "64K"},
        {(1 << 20) - 1, "1M"},
        {10ull << 30, "10G"},
        {(10ull << 30) + (300ull << 20), "10.3G"},
        {1ull << 60, "1E"},
        {UINT64_MAX, "16E"},
    };
    for (auto [bytes, text] : cases) {
        INFO(bytes);
        CHECK(vql::human_size(bytes) == text);
    }
}

TEST_CASE("durations are shown with three digits", "[cli]") {
    const std::pair<uint64_t, const char*> cases[] = {
        {0, "0ns"},
        {950, "950ns"},
        {999, "999ns"},
        {1000, "1.00us"},
        {9994, "9.99us"},
        {9996, "10.0us"},
        {12345, "12.3us"},
        {99960, "100us"},
        {999499, "999us"},
        {999500, "1.00ms"},
        {1250000, "1.25ms"},
        {90000000000, "90.0s"},
        {5000000000000, "5000s"},
    };
    for (auto [ns, text] : cases) {
        INFO(ns);
        CHECK(vql::human_duration(ns) == text);
    }
}

TEST_CASE("an extent is split at its last two colons", "[cli]") {
    auto plain = vql::parse_extent("data0:1M:2G");
    REQUIRE(plain);
    CHECK(*plain == json{{"target", "data0"}, {"offset", 1048576}, {"length", 2147483648}});
    auto colons = vql::parse_extent("file:/a:b:0:512");
    REQUIRE(colons);
    CHECK(*colons == json{{"target", "file:/a:b"}, {"offset", 0}, {"length", 512}});
    for (const char* text :
         {"", ":", "::", "a", "a:0", ":0:512", "a:0:", "a::1G", "a:0:1X", "a:1:512"}) {
        INFO(text);
        CHECK_FALSE(vql::parse_extent(text));
    }
    CHECK(vql::parse_extent("a:0:1000").failure().text ==
          "length of \"a:0:1000\": 1000 is not a multiple of 512 bytes");
}

TEST_CASE("disks are listed one a row", "[cli]") {
    const json disks = {{{"name", "vm1"},
                         {"size", 10737418240},
                         {"read_only", false},
                         {"queues", 4},
                         {"queue_size", 256},
                         {"chunk_size", 1073741824},
                         {"socket", "/run/vqlane/vm1.sock"},
                         {"connected", true},
                         {"client", {{"pid", 12345}, {"command", "qemu"}}},
                         {"queues_running", 2},
                         {"pollers", {2, 3}},
                         {"lanes",
                          {{{"lane", "kernel"}, {"why", "little to do"}},
                           {{"lane", "poll"}, {"why", ""}},
                           {{"lane", "kernel"}, {"why", "little to do"}}}},
                         {"targets", {"a", "b"}},
                         {"policy", ""}},
                        {{"name", "x"},
                         {"size", 512},
                         {"read_only", true},
                         {"queues", 1},
                         {"queue_size", 64},
                         {"chunk_size", 65536},
                         {"socket", "/x"},
                         {"state", "waiting"},
                         {"problem", "target a: /x: No such file or directory"},
                         {"connected", false},
                         {"queues_running", 0},
                         {"pollers", json::array()},
                         {"lanes", {{{"lane", "poll"}, {"why", "as configured"}}}},
                         {"targets", {"a"}},
                         {"policy", "protect"}}};
    CHECK(vql::disk_table(disks, false) ==
          "NAME  SIZE  ACCESS  STATE    CLIENT        QUEUES  LANE             TARGETS\n"
          "vm1    10G  rw      serving  qemu (12345)     2/4  kernel x2, poll  a,b\n"
          "x      512  ro      waiting  -                0/1  poll             a\n"
          "disk x: target a: /x: No such file or directory\n");
    CHECK(vql::disk_table(disks, true) ==
          "NAME  SIZE  ACCESS  STATE    CLIENT        QUEUES  LANE                            "
          "QUEUE SIZE  CHUNK  POLLERS  TARGETS  POLICY   SOCKET OR DEVICE\n"
          "vm1    10G  rw      serving  qemu (12345)     2/4  kernel (little to do) x2, poll  "
          "       256     1G  2,3      a,b      -        /run/vqlane/vm1.sock\n"
          "x      512  ro      waiting  -                0/1  poll (as configured)            "
          "        64    64K  -        a        protect  /x\n"
          "disk x: target a: /x: No such file or directory\n");
    CHECK(vql::disk_details(disks[1]) == "name          x\n"
                                         "state         waiting\n"
                                         "problem       target a: /x: No such file or directory\n"
                                         "size          512 (512 bytes)\n"
                                         "access        read-only\n"
                                         "socket        /x\n"
                                         "client        -\n"
                                         "queues        1 of up to 64 entries, 0 running\n"
                                         "lane          poll (as configured)\n"
                                         "pollers       -\n"
                                         "chunk         64K\n"
                                         "targets       a\n"
                                         "policy        protect\n");
    CHECK_THROWS_AS(vql::disk_table({{{"name", "vm1"}}}, false), json::exception);
    CHECK_THROWS_AS(vql::disk_table({1}, false), json::exception);
}

TEST_CASE("a list of disks fits 80 columns, whatever their names, and tells each disk", "[cli]") {
    json disks = json::array();
    for (int i = 0; i < 3; i++)
        disks.push_back({{"name", "guest-3b2b2a80-43f0-4b0e-9d0e-0123456789ab-system-disk-0" +
                                      std::to_string(i)},
                         {"size", 10737418240},
                         {"read_only", false},
                         {"queues", 64},
                         {"queue_size", 256},
                         {"chunk_size", 1073741824},
                         {"socket", "/s"},
                         {"connected", true},
                         {"client", {{"pid", 1234567}, {"command", "qemu-system-x86"}}},
                         {"queues_running", 64},
                         {"pollers", {2, 3}},
                         {"lanes", {{{"lane", "kernel"}, {"why", "little to do"}}}},
                         {"targets", {"file:/var/lib/vqlane/images/a-very-long-name.img"}},
                         {"policy", ""}});
    const std::string text = vql::disk_table(disks, false);
    size_t lines = 0;
    for (size_t at = 0, end = 0; (end = text.find('\n', at)) != text.npos; at = end + 1) {
        CHECK(end - at <= 80);
        lines++;
    }
    CHECK(lines == 4);
    CHECK(vql::disk_table(disks, false, 0).find("a-very-long-name.img") != text.npos);
    for (int i = 0; i < 3; i++) // the ends of names are what tells them apart
        CHECK(text.find("0" + std::to_string(i) + "  ") != text.npos);
}

TEST_CASE("a list of disks is sorted, and one disk is chosen by name", "[cli]") {
    const auto disk = [](const char* name, uint64_t size, bool connected) {
        return json{{"name", name}, {"size", size}, {"connected", connected}};
    };
    const json all = {disk("vm2", 1, false), disk("vm1", 2, false), disk("web", 1, true)};
    const auto order = [&](const char* sort) {
        json list = all;
        vql::disk_list_options o;
        o.sort = sort;
        REQUIRE(vql::choose_disks(list, o));
        std::string names;
        for (const json& d : list)
            names += d.at("name").get<std::string>() + " ";
        return names;
    };
    CHECK(order("name") == "vm1 vm2 web ");
    CHECK(order("size") == "vm1 vm2 web ");
    CHECK(order("client") == "web vm1 vm2 ");
    json one = all;
    REQUIRE(vql::choose_disks(one, {"vm1", "name", false}));
    CHECK(one == json::array({all[1]}));
    CHECK(vql::choose_disks(one, {"webb", "name", false}).failure().text ==
          "disk webb does not exist");
    json none = all;
    CHECK(vql::choose_disks(none, {"webb", "name", false}).failure().text ==
          "disk webb does not exist; did you mean \"web\"?");
}

TEST_CASE("the nearest word is the one that a slip turns into it", "[cli]") {
    const std::vector<std::string_view> known = {"list", "add", "rm", "resize", "policy"};
    const std::pair<const char*, const char*> cases[] = {
        {"lst", "list"},      {"lits", "list"},     {"lisst", "list"}, {"ad", "add"},
        {"resise", "resize"}, {"polciy", "policy"}, {"rn", "rm"},      {"", ""},
        {"list", ""},         {"paint", ""},        {"x", ""},         {"delete", ""},
    };
    for (const auto& [word, wanted] : cases) {
        INFO(word);
        CHECK(vql::nearest_word(word, known) == wanted);
    }
    CHECK(vql::nearest_word(std::string(1000, 'l'), known).empty());
    CHECK(vql::did_you_mean("lst", known) == "; did you mean \"list\"?");
    CHECK(vql::did_you_mean("paint", known).empty());
}

TEST_CASE("stats without rates show totals, of the operations that happened", "[cli]") {
    CHECK(vql::op_table(stats(1000, 4096000), false, nullptr, 0) ==
          "DISK  OP     COUNT  BYTES     AVG     P50     P99   P99.9    MAX  ERRORS\n"
          "vm1   read    1000   3.9M  20.0us  18.0us  90.0us  1.50ms  2.00s       2\n"
          "vm1   flush      3      0  20.0us  18.0us  90.0us  1.50ms  2.00s       2\n"
          "vm2   -          0\n");
    json reversed = stats(1000, 4096000); // disks are told by name, as disk list tells them
    std::reverse(reversed.at("disks").begin(), reversed.at("disks").end());
    CHECK(vql::op_table(reversed, false, nullptr, 0) ==
          vql::op_table(stats(1000, 4096000), false, nullptr, 0));
    CHECK(vql::poller_table(stats(1000, 0), false, nullptr, 0) ==
          "POLLER CPU  REQUESTS  WAKEUPS  SLEEPS   BUSY\n"
          "         3      1003        7       6  1.00s\n");
}

TEST_CASE("rates are the difference of two samples over their time", "[cli]") {
    const json before = stats(1000, 4096000), now = stats(2000, 8192000);
    CHECK(vql::op_table(now, true, before, 2) ==
          "DISK  OP     COUNT  IOPS  MB/s     AVG     P50     P99   P99.9    MAX  ERRORS\n"
          "vm1   read    2000   500   2.0  20.0us  18.0us  90.0us  1.50ms  2.00s       2\n"
          "vm1   flush      3     0   0.0  20.0us  18.0us  90.0us  1.50ms  2.00s       2\n"
          "vm2   -          0\n");
    CHECK(vql::poller_table(now, true, before, 2) ==
          "POLLER CPU  REQUESTS  IOPS  WAKEUPS/s   BUSY\n"
          "         3      2003   500          0  50.0%\n");
}

TEST_CASE("no rate is shown where there is nothing to compare with", "[cli]") {
    const json now = stats(1000, 4096000), later_life = stats(2000, 8192000);
    const json other_disk = {{"disks", json::array()}, {"pollers", json::array()}};
    const auto has_no_rates = [](const std::string& text) {
        return text.find(" read    1000     -     -  ") != text.npos;
    };
    CHECK(has_no_rates(vql::op_table(now, true, nullptr, 1)));
    CHECK(has_no_rates(vql::op_table(now, true, other_disk, 1)));
    CHECK(has_no_rates(vql::op_table(now, true, later_life, 1)));
    CHECK(has_no_rates(vql::op_table(now, true, now, 0)));
    CHECK_FALSE(has_no_rates(vql::op_table(now, true, now, 1)));
    json first_gone = now; // compared by name, not by place
    first_gone["disks"].erase(0);
    first_gone["pollers"][0]["cpu"] = 4;
    CHECK(has_no_rates(vql::op_table(now, true, first_gone, 1)));
    CHECK(vql::poller_table(now, true, first_gone, 1).find("1003     -          -     -\n") !=
          std::string::npos);
    CHECK(vql::poller_table(now, true, later_life, 1).find("1003     -          0     -\n") !=
          std::string::npos);
}

TEST_CASE("statistics of another form are an exception, not a crash", "[cli]") {
    const json bad[] = {nullptr, json::array(), {{"disks", 1}}, {{"disks", {{{"name", "x"}}}}}};
    for (const json& value : bad)
        CHECK_THROWS_AS(vql::op_table(value, false, nullptr, 0), json::exception);
    CHECK_THROWS_AS(vql::op_table(stats(1, 1), true, {{"pollers", 1}}, 1), json::exception);
}

TEST_CASE("a call sends one line and takes the result of one", "[cli]") {
    std::string got;
    {
        const fake_daemon daemon([&](int fd) {
            for (int i = 0; i < 2; i++) {
                got += read_line(fd) + "|";
                send_text(fd, "{\"ok\":true,");
                std::this_thread::sleep_for(20ms); // an answer may come in pieces
                send_text(fd, "\"result\":" + std::to_string(i) + "}\n");
            }
        });
        auto client = vql::client::connect(daemon.path(), 5s);
        REQUIRE(client);
        auto first = client->call({{"op", "a\nb"}});
        auto second = client->call({{"op", "c"}});
        REQUIRE(first);
        REQUIRE(second);
        CHECK(*first == 0);
        CHECK(*second == 1);
    }
    CHECK(got == "{\"op\":\"a\\nb\"}|{\"op\":\"c\"}|");
}

TEST_CASE("a long answer arrives whole", "[cli]") {
    const std::string text(3 << 20, 'x');
    CHECK(called("{\"ok\":true,\"result\":\"" + text + "\"}\n") == "\"" + text + "\"");
}

TEST_CASE("the daemon's error is the call's error", "[cli]") {
    CHECK(called("{\"ok\":false,\"error\":\"no disk \\\"x\\\"\"}\n") == "error: no disk \"x\"");
}

TEST_CASE("what is no answer is told so", "[cli]") {
    const std::string no_answer = "error: the daemon at PATH sent something that is no answer (are "
                                  "vqlane and vqlaned of one version?)";
    for (const char* text :
         {"", "x", "[]", "{}", "null", "{\"ok\":true}", "{\"ok\":false}",
          "{\"ok\":false,\"error\":1}", "{\"ok\":1,\"result\":1}", "{\"result\":1}"}) {
        INFO(text);
        CHECK(called(std::string(text) + "\n") == no_answer);
    }
    CHECK(called("") == "error: the daemon at PATH closed the connection without an answer");
    CHECK(called("{\"ok\":true") ==
          "error: the daemon at PATH closed the connection without an answer");
}

TEST_CASE("a daemon that does not answer in time is told so", "[cli]") {
    const fake_daemon daemon([](int fd) {
        read_line(fd);
        for (int i = 0; i < 100; i++) { // bytes without an end do not prolong it
            send_text(fd, "x");
            std::this_thread::sleep_for(10ms);
        }
    });
    auto client = vql::client::connect(daemon.path(), 100ms);
    REQUIRE(client);
    const auto start = std::chrono::steady_clock::now();
    auto value = client->call({{"op", "x"}});
    const auto took = std::chrono::steady_clock::now() - start;
    REQUIRE_FALSE(value);
    CHECK(value.failure().text == "the daemon at " + daemon.path() + " (process " +
                                      std::to_string(getpid()) + ") did not answer within 100ms");
    CHECK(took >= 100ms);
    CHECK(took < 900ms);
}

TEST_CASE("a daemon that is at work on one request, and answers others, is waited for", "[cli]") {
    std::atomic<int> asked = 0;
    const fake_daemon daemon(
        [&](int fd) {
            read_line(fd);
            while (asked < 3) // half of the patience before each
                std::this_thread::sleep_for(5ms);
            send_text(fd, "{\"ok\":true,\"result\":7}\n");
        },
        [&](int fd) {
            if (read_line(fd) == "{\"op\":\"version\"}")
                asked++;
            send_text(fd, "{\"ok\":false,\"error\":\"an older one\"}\n");
        });
    auto client = vql::client::connect(daemon.path(), 100ms);
    REQUIRE(client);
    const auto start = std::chrono::steady_clock::now();
    auto value = client->call({{"op", "x"}});
    REQUIRE(value);
    CHECK(*value == 7);
    CHECK(std::chrono::steady_clock::now() - start >= 200ms);
}

TEST_CASE("a daemon that accepts nobody does not hold the client for ever", "[cli]") {
    const fake_daemon daemon([](int fd) { read_line(fd); });
    // The first is accepted, the next fill the backlog.
    std::vector<vql::client> clients;
    for (int i = 0; i < 8; i++) {
        auto client = vql::client::connect(daemon.path(), 100ms);
        if (!client) {
            CHECK(client.failure().text == "cannot reach the daemon at " + daemon.path() +
                                               ": Resource temporarily unavailable (the daemon "
                                               "accepts no connections)");
            return;
        }
        clients.push_back(std::move(*client));
    }
    FAIL("eight connections fitted a backlog of one");
}

TEST_CASE("a socket that cannot be reached is told with the reason", "[cli]") {
    const auto why = [](const std::string& path) {
        auto client = vql::client::connect(path, 1s);
        return client ? "(connected)" : client.failure().text;
    };
    CHECK(why("/nonexistent/control.sock") ==
          "cannot reach the daemon at /nonexistent/control.sock: No such file or directory (is "
          "vqlaned running?)");
    CHECK(why("/dev/null") == "cannot reach the daemon at /dev/null: Connection refused (is "
                              "vqlaned running?)");
    CHECK(why("") == "cannot reach the daemon at : a socket's path has 1 to 107 bytes");
    const std::string long_path(108, 's');
    CHECK(why(long_path) ==
          "cannot reach the daemon at " + long_path + ": a socket's path has 1 to 107 bytes");
}

} // namespace
