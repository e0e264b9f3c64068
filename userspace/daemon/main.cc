// SPDX-License-Identifier: GPL-2.0-only
// vqlaned: command line, signals, readiness.
#include "base/event_loop.h"
#include "base/log.h"
#include "base/version.h"
#include "daemon/commands.h"
#include "daemon/config_files.h"
#include "daemon/control.h"
#include "daemon/server.h"
#include "daemon/state.h"
#include "daemon/storage_child.h"
#include "daemon/validate.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>

namespace vql {

namespace {

struct flags {
    std::string config_path = "/etc/vqlane/vqlaned.toml";
    bool check = false;
    bool strict = false;
    nlohmann::json daemon = nlohmann::json::object(); // over the keys of [daemon]
};

// Exits on --help and on a wrong command line (2).
flags parse_flags(int argc, char** argv) {
    flags f;
    std::string run_dir, state_dir, bpf_dir, bpf, spin, level, registration;
    std::vector<int> pollers;
    CLI::App app{"vqlaned serves virtual disks to KVM guests. See vqlane --help for the command "
                 "that steers it."};
    app.set_version_flag("--version", std::string("vqlaned ") + version());
    app.add_option("--config", f.config_path, "configuration file")->capture_default_str();
    app.add_option("--run-dir", run_dir, "folder for sockets");
    app.add_option("--state-dir", state_dir, "folder for what commands made, over a restart");
    app.add_option("--bpf-dir", bpf_dir, "folder for pinned BPF maps, on a BPF file system");
    app.add_option("--bpf", bpf, "auto, required or off");
    app.add_option("--pollers", pollers, "CPU numbers, one poller on each")->delimiter(',');
    app.add_option("--spin", spin, "always, or microseconds to poll after the last work");
    app.add_option("--register-memory", registration, "auto, always or never");
    app.add_option("--log-level", level, "error, warning, info or debug");
    app.add_flag("--strict", f.strict,
                 "end if a disk cannot be served at the start (without it that disk waits)");
    app.add_flag("--check", f.check,
                 "only read the configuration and compare it with this machine");
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        std::exit(app.exit(e) ? 2 : 0);
    }
    const auto set = [&](const char* key, const std::string& value) {
        if (!value.empty())
            f.daemon[key] = value;
    };
    // A relative one is the caller's.
    const auto set_folder = [&](const char* key, const std::string& value) {
        set(key, value.empty() ? value : std::filesystem::absolute(value).string());
    };
    set_folder("run_dir", run_dir);
    set_folder("state_dir", state_dir);
    set_folder("bpf_dir", bpf_dir);
    set("bpf", bpf);
    set("log_level", level);
    set("register_memory", registration);
    if (!pollers.empty())
        f.daemon["pollers"] = pollers;
    if (!spin.empty() && spin.find_first_not_of("0123456789") == std::string::npos &&
        spin.size() < 10)
        f.daemon["spin_us"] = std::stoul(spin);
    else
        set("spin", spin);
    return f;
}

sigset_t ours(std::initializer_list<int> numbers) {
    sigset_t set;
    sigemptyset(&set);
    for (int number : numbers)
        sigaddset(&set, number);
    return set;
}

// What commands did goes over what the files say.
result<config> with_notes(state_store& state, const config& files, bool strict) {
    std::vector<std::string> wrong, said;
    config c = files;
    state.open(wrong);
    for (const std::string& line : wrong)
        log_error(line);
    if (strict && !wrong.empty())
        return error{"what commands did could not all be read"};
    apply_notes(state.notes(), c, said);
    for (const std::string& line : said)
        log_info(line);
    return c;
}

void say_ready(const server& s) {
    const auto waiting = std::count_if(s.entries().begin(), s.entries().end(), [](const auto& e) {
        return e->now != disk_entry::phase::ready;
    });
    log_info("ready: " + std::to_string(s.entries().size()) + " disks, " +
             (waiting ? "of which " + std::to_string(waiting) + " wait, " : "") +
             std::to_string(s.pollers().size()) + " pollers");
    sd_notify(0, "READY=1");
}

result<void> serve(const config_text& files, const config_source& from, bool strict) {
    event_loop loop;
    const sigset_t signals = ours({SIGTERM, SIGINT, SIGHUP});
    // Before any thread starts, so that all inherit it and the loop alone gets them.
    sigprocmask(SIG_BLOCK, &signals, nullptr);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); // a file that may not grow so far is an error (EFBIG)

    state_store state(loop, files.settings.state_dir);
    const auto c = with_notes(state, files.settings, strict);
    if (!c)
        return c.failure();
    server s(loop, *c);
    commands operations(loop, s, state, from, files);
    control_socket control(loop, s, operations);
    result<void> ok = s.start();
    if (ok)
        ok = control.listen(c->run_dir);
    bool stopping = false;
    const auto stop = [&] {
        if (!std::exchange(stopping, true))
            s.stop([&] { loop.stop(); });
    };
    unique_fd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
    loop.add(signal_fd.get(), EPOLLIN, [&](uint32_t) {
        signalfd_siginfo info{};
        if (::read(signal_fd.get(), &info, sizeof(info)) != sizeof(info) || stopping)
            return;
        if (info.ssi_signo == SIGHUP)
            return operations.reload([](const result<nlohmann::json>&) {}); // the log has it
        log_info("stopping: waiting for what is in flight");
        sd_notify(0, "STOPPING=1");
        stop();
    });
    // While storage takes its time, commands and signals are answered.
    if (ok)
        ok = s.settle(strict);
    if (!ok)
        stop(); // some disks may have guests already
    if (!stopping)
        say_ready(s);
    loop.run();
    loop.remove(signal_fd.get());
    return ok;
}

int run(int argc, char** argv) {
    // It is to be read as "reload" from the first moment: one that comes early waits for the loop.
    const sigset_t hangup = ours({SIGHUP});
    sigprocmask(SIG_BLOCK, &hangup, nullptr);
    const flags f = parse_flags(argc, argv);
    config defaults;
    if (auto ok = override_daemon(f.daemon, defaults); !ok) {
        log_error("command line: " + ok.failure().text);
        return 2; // like any other wrong use
    }
    config_text text;
    load_config(f.config_path, f.daemon, text);
    check_machine(text, f.check ? look::storage : look::daemon);
    if (text.found.fatal() || ((f.check || f.strict) && !text.found.empty())) {
        for (const std::string& line : text.found.shown())
            log_error(line);
        return 1;
    }
    if (f.check) {
        // What commands did goes over the files, and is to be readable as well.
        std::vector<std::string> wrong, said;
        const disk_notes notes = read_notes(text.settings.state_dir, wrong);
        config with = text.settings;
        apply_notes(notes, with, said);
        for (const std::string& line : said)
            log_info(line);
        for (const std::string& line : wrong)
            log_error(line);
        if (!wrong.empty())
            return 1;
        std::printf("%s: ok\n", f.config_path.c_str());
        return 0;
    }
    set_log_level(text.settings.level);
    if (auto ok = serve(text, {f.config_path, f.daemon}, f.strict); !ok) {
        log_error(ok.failure().text);
        return 1;
    }
    return 0;
}

} // namespace

} // namespace vql

int main(int argc, char** argv) {
    if (const auto status = vql::storage_child(argc, argv))
        return *status;
    try {
        return vql::run(argc, argv);
    } catch (const std::exception& e) { // out of memory, out of descriptors at start
        vql::log_error(e.what());
        return 1;
    }
}
