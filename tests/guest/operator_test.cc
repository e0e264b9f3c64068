// SPDX-License-Identifier: GPL-2.0-only
// The operator at a terminal: words, paths, versions, and a daemon that does not answer.
#include "e2e.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

namespace vql::guest {

using Catch::Matchers::ContainsSubstring;
using nlohmann::json;

namespace {

command_result vqlane(const daemon_process& daemon, std::vector<std::string> arguments) {
    std::vector<std::string> all = {built_program("vqlane"), "--socket", daemon.control_socket()};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run_command(all);
}

// The same without a daemon.
command_result vqlane(const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {built_program("vqlane")};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run_command(all);
}

std::string one_disk() {
    return null_target("n", "1G") + disk_on("d", "n");
}

// A program on a terminal of its own, of 24 lines.
class on_terminal {
  public:
    on_terminal(const std::vector<std::string>& arguments, const char* term,
                unsigned short columns = 80) {
        master_ = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        REQUIRE(master_ >= 0);
        REQUIRE(::grantpt(master_) == 0);
        REQUIRE(::unlockpt(master_) == 0);
        const std::string name = ::ptsname(master_);
        winsize size{24, columns, 0, 0};
        REQUIRE(::ioctl(master_, TIOCSWINSZ, &size) == 0);
        std::vector<char*> argv;
        for (const std::string& a : arguments)
            argv.push_back(const_cast<char*>(a.c_str()));
        argv.push_back(nullptr);
        pid_ = ::fork();
        REQUIRE(pid_ >= 0);
        if (pid_ == 0) {
            ::setsid();
            const int fd = ::open(name.c_str(), O_RDWR);
            for (int i = 0; i < 3; i++)
                ::dup2(fd, i);
            ::setenv("TERM", term, 1);
            ::execv(argv[0], argv.data());
            ::_exit(127);
        }
        slave_ = ::open(name.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC); // its settings can be read
        REQUIRE(slave_ >= 0);
    }
    ~on_terminal() {
        if (pid_ > 0) {
            ::kill(pid_, SIGKILL);
            ::waitpid(pid_, nullptr, 0);
        }
        ::close(slave_);
        ::close(master_);
    }

    bool echoes() const {
        termios t{};
        return ::tcgetattr(slave_, &t) == 0 && (t.c_lflag & ECHO);
    }
    void type(const std::string& keys) {
        REQUIRE(::write(master_, keys.data(), keys.size()) == ssize_t(keys.size()));
    }
    // All that came so far; waits until @text is in it, from byte @from on.
    bool shows(const std::string& text, size_t from = 0) {
        deadline until(default_timeout());
        while (!until.passed()) {
            if (said_.find(text, from) != std::string::npos)
                return true;
            pollfd p{master_, POLLIN, 0};
            char part[4096];
            if (::poll(&p, 1, 50) == 1) {
                const ssize_t n = ::read(master_, part, sizeof(part));
                if (n > 0)
                    said_.append(part, size_t(n));
            }
        }
        return false;
    }
    const std::string& said() const { return said_; }
    // Its exit status, or -1 when it does not end.
    int ends() {
        deadline until(default_timeout());
        int status = 0;
        while (!until.passed()) {
            if (::waitpid(pid_, &status, WNOHANG) == pid_) {
                pid_ = -1;
                return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            }
            usleep(10000);
        }
        return -1;
    }

  private:
    int master_ = -1, slave_ = -1;
    pid_t pid_ = -1;
    std::string said_;
};

} // namespace

TEST_CASE("all parts tell their version, and the daemon's is the command's", "[operator]") {
    test_daemon daemon(one_disk());
    command_result version = vqlane(daemon, {"version"});
    REQUIRE(version.status == 0);
    json all = json::parse(vqlane(daemon, {"--json", "version"}).out);
    CHECK(all.at("json") == 2);
    CHECK(all.at("vqlane") == all.at("vqlaned"));
    CHECK(all.at("vqlane") != "");
    CHECK_THAT(version.out, ContainsSubstring("vqlaned  " + all.at("vqlaned").get<std::string>()));
    CHECK(all.at("module").is_string() == vdpa_world());
    CHECK(run_command({built_program("vqlaned"), "--version"}).out ==
          "vqlaned " + all.at("vqlaned").get<std::string>() + "\n");
    CHECK(run_command({built_program("vqlane"), "--version"}).out ==
          "vqlane " + all.at("vqlane").get<std::string>() + "\n");
    json nobody = json::parse(
        run_command({built_program("vqlane"), "--socket", "/nonexistent/s", "--json", "version"})
            .out);
    CHECK(nobody.at("vqlaned").is_null());
    CHECK_THAT(nobody.at("vqlaned_error").get<std::string>(), ContainsSubstring("/nonexistent/s"));
}

TEST_CASE("a relative path is the caller's, not the daemon's", "[operator]") {
    test_daemon daemon(one_disk());
    temporary_directory folder("/dev/shm");
    make_file(folder / "disk.img", 1 << 20);
    const std::string vqlane_path = std::filesystem::absolute(built_program("vqlane")).string();
    const std::string script = R"(cd "$0" && exec "$1" --socket "$2" --json disk add f )"
                               R"(--file disk.img --vhost-socket ./f.sock)";
    const command_result added =
        run_command({"/bin/sh", "-c", script, folder.path(), vqlane_path, daemon.control_socket()});
    INFO(added.err);
    REQUIRE(added.status == 0);
    const json f = json::parse(added.out);
    CHECK(f.at("targets") == json({"file:" + folder / "disk.img"}));
    CHECK(f.at("socket") == folder / "f.sock");
    CHECK(vqlane(daemon, {"disk", "rm", "f"}).status == 0);
}

TEST_CASE("a wrong word is named with the nearest right one", "[operator]") {
    const std::pair<std::vector<std::string>, const char*> table[] = {
        {{"disk", "lst"}, "\"lst\" is no command of \"vqlane disk\"; did you mean \"list\"?"},
        {{"dsik", "list"}, "\"dsik\" is no command of \"vqlane\"; did you mean \"disk\"?"},
        {{"disk", "add", "e", "--fiel", "/x"}, "did you mean \"--file\"?"},
        {{"--sokcet", "/x", "stats"}, "did you mean \"--socket\"?"},
        {{"--socket", "/x", "satts"}, "did you mean \"stats\"?"},
        {{"disk", "paint", "d"}, "it has list, add, rm, resize, policy"},
    };
    for (const auto& [words, wanted] : table) {
        INFO(json(words).dump());
        const command_result result = vqlane(words);
        CHECK(result.status == 2);
        CHECK_THAT(result.err, ContainsSubstring(wanted));
    }
    // The list of commands is for who lacks one.
    const std::pair<std::vector<std::string>, bool> lists[] = {{{}, true},
                                                               {{"disk"}, true},
                                                               {{"disk", "add", "e"}, false},
                                                               {{"stats", "--watch", "x"}, false}};
    for (const auto& [words, wanted] : lists) {
        INFO(json(words).dump());
        const command_result result = vqlane(words);
        CHECK(result.status == 2);
        CHECK((result.err.find("Commands: ") != std::string::npos) == wanted);
    }
    test_daemon daemon(one_disk());
    CHECK_THAT(vqlane(daemon, {"disk", "list", "dd"}).err,
               ContainsSubstring("did you mean \"d\"?"));
    CHECK_THAT(vqlane(daemon, {"disk", "list", "d"}).out,
               ContainsSubstring("1G (1073741824 bytes)"));
}

TEST_CASE("a list of disks is as wide as its terminal, and whole in a pipe", "[operator]") {
    const std::string target = "a-target-" + std::string(50, 'x') + "-y";
    test_daemon daemon(null_target(target, "1G") + disk_on("d", target));
    CHECK_THAT(vqlane(daemon, {"disk", "list"}).out, ContainsSubstring(target));
    const std::vector<std::string> list = {built_program("vqlane"), "--socket",
                                           daemon.control_socket(), "disk", "list"};
    on_terminal narrow(list, "xterm"), wide(list, "xterm", 200);
    CHECK(narrow.shows("-y\r\n"));
    CHECK(narrow.ends() == 0);
    CHECK_THAT(narrow.said(), !ContainsSubstring(target) && ContainsSubstring(".."));
    CHECK(wide.shows(target));
    CHECK(wide.ends() == 0);
}

TEST_CASE("with --json errors have one shape, and what is watched is an object a line",
          "[operator]") {
    test_daemon daemon(one_disk());
    for (const auto& [arguments, status] :
         {std::pair<std::vector<std::string>, int>{{"--json", "disk", "rm", "nosuch"}, 1},
          {{"--json", "disk", "list", "nosuch"}, 1},
          {{"--json", "device", "bind", "nosuch"}, 1},
          {{"--json", "stats", "nosuch"}, 1},
          {{"--json", "disk", "resize", "d", "lots"}, 2},
          {{"--json", "disk", "lst"}, 2}}) {
        INFO(json(arguments).dump());
        const command_result result = vqlane(daemon, arguments);
        CHECK(result.status == status);
        CHECK(result.out == "");
        const json error = json::parse(result.err, nullptr, false);
        REQUIRE(error.is_object());
        CHECK(error.at("error").is_string());
        CHECK(error.at("status") == status);
    }
    const command_result watched =
        run_command({"/usr/bin/timeout", "1", built_program("vqlane"), "--socket",
                     daemon.control_socket(), "--json", "stats", "d", "--watch", "0.1"});
    size_t lines = 0;
    for (size_t at = 0, end = 0; (end = watched.out.find('\n', at)) != std::string::npos;
         at = end + 1, lines++)
        CHECK(json::parse(watched.out.substr(at, end - at)).at("disks").size() == 1);
    CHECK(lines >= 2);
}

TEST_CASE("a stopped daemon is told so, with the way to have it go on", "[operator]") {
    test_daemon daemon(one_disk());
    REQUIRE(::kill(daemon.pid(), SIGSTOP) == 0);
    const auto start = std::chrono::steady_clock::now();
    const command_result result = vqlane(daemon, {"disk", "list"});
    const auto took = std::chrono::steady_clock::now() - start;
    REQUIRE(::kill(daemon.pid(), SIGCONT) == 0);
    CHECK(result.status == 1);
    CHECK_THAT(result.err, ContainsSubstring("is stopped") &&
                               ContainsSubstring("kill -CONT " + std::to_string(daemon.pid())));
    CHECK(took >= std::chrono::seconds(4));
    CHECK(took < default_timeout());
    CHECK(vqlane(daemon, {"disk", "list"}).status == 0);
}

TEST_CASE("top draws a screen that keys steer, and gives the terminal back", "[operator]") {
    vhost_user_only only("its subject is the operator's terminal");
    std::string config = null_target("n", "4G");
    for (int i = 10; i < 40; i++)
        config +=
            disk_of("disk" + std::to_string(i), "extents = [{target = \"n\", offset = \"" +
                                                    std::to_string(i) + "M\", length = \"1M\"}]\n");
    test_daemon daemon(config);
    on_terminal top(
        {built_program("vqlane"), "--socket", daemon.control_socket(), "top", "--interval", "0.2"},
        "xterm");
    REQUIRE(top.shows("disks 1 to 21 of 30"));
    CHECK_THAT(top.said(), ContainsSubstring("TOTAL") && ContainsSubstring("disk10") &&
                               !ContainsSubstring("disk31"));
    CHECK_FALSE(top.echoes());
    const size_t before = top.said().size();
    top.type("\033[F");
    CHECK(top.shows("disks 10 to 30 of 30", before));
    CHECK(top.shows("disk39", before));
    top.type("\033[H\033[Bi\033[B"); // in one piece
    CHECK(top.shows("now i", before));
    CHECK(top.shows("disks 2 to 22 of 30", before));
    top.type("q");
    CHECK(top.ends() == 0);
    CHECK(top.echoes());
    CHECK(top.shows("\033[?25h"));

    on_terminal ended({built_program("vqlane"), "--socket", daemon.control_socket(), "top"},
                      "xterm");
    REQUIRE(ended.shows("TOTAL"));
    ended.type("\003"); // Ctrl-C
    CHECK(ended.ends() == 0);
    CHECK(ended.echoes());

    on_terminal dumb({built_program("vqlane"), "--socket", daemon.control_socket(), "top",
                      "--interval", "0.2", "--count", "2"},
                     "dumb");
    REQUIRE(dumb.shows("disk39"));
    CHECK(dumb.ends() == 0);
    CHECK(dumb.said().find('\033') == std::string::npos);
}

} // namespace vql::guest
