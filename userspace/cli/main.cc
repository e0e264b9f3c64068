// SPDX-License-Identifier: GPL-2.0-only
// vqlane: the operator's command. It turns the command line into one request to the daemon and the
// answer into a table; what is right and wrong is for the daemon to say. Commands about the
// machine's drives need no daemon.
#include "base/size.h"
#include "base/version.h"
#include "cli/bench.h"
#include "cli/client.h"
#include "cli/device_bind.h"
#include "cli/device_boot.h"
#include "cli/disk.h"
#include "cli/reload.h"
#include "cli/stats.h"
#include "cli/terminal.h"
#include "cli/top.h"
#include "cli/trace.h"
#include "cli/version.h"
#include "cli/words.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

namespace {

using nlohmann::json;
using vql::client;
using clock = std::chrono::steady_clock;

// A daemon that says nothing for so long, and answers no other question either, is given up.
constexpr std::chrono::seconds patience{5};

struct command_line {
    std::string socket = "/run/vqlane/control.sock";
    bool as_json = false;
    json request;                // without "op" until a command is recognized
    double watch_seconds = 0;    // 0: once
    vql::disk_list_options list; // of disk_list
    std::function<int()> local;  // instead of a request: a command that needs no daemon
    // … or one that talks to it on its own.
    std::function<vql::result<void>(client&)> session;
};

// Errors are one JSON object a line, too, once --json was seen; written before any command runs.
bool errors_as_json = false;

int failed(const std::string& text, int status = 1) {
    if (errors_as_json)
        std::fprintf(stderr, "%s\n",
                     json{{"error", text}, {"status", status}}
                         .dump(-1, ' ', false, json::error_handler_t::replace)
                         .c_str());
    else
        std::fprintf(stderr, "vqlane: %s\n", text.c_str());
    return status;
}

// Relative paths are the caller's: the daemon's working directory is another.
std::string callers_path(const std::string& path) {
    return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

int print(const std::string& text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout))
        return failed(vql::errno_error("cannot write the output", errno).text);
    return 0;
}

uint64_t size_argument(const char* what, const std::string& text) {
    auto bytes = vql::parse_size(text);
    if (!bytes)
        throw CLI::ValidationError(what, bytes.failure().text);
    return *bytes;
}

void define_name(CLI::App& command, json& request) {
    command
        .add_option_function<std::string>(
            "NAME", [&request](const std::string& name) { request["name"] = name; },
            "name of the disk")
        ->required();
}

void define_disk_add(CLI::App& command, json& request) {
    const auto text = [&request](CLI::App& app, const char* option, const char* key,
                                 const char* help) {
        app.add_option_function<std::string>(
            option, [&request, key](const std::string& value) { request[key] = value; }, help);
    };
    const auto path = [&request](CLI::App& app, const char* option, const char* key,
                                 const char* help) {
        app.add_option_function<std::string>(
            option,
            [&request, key](const std::string& value) { request[key] = callers_path(value); },
            help);
    };
    const auto size = [&](const char* option, const char* key, const char* help) {
        command.add_option_function<std::string>(
            option,
            [&request, option, key](const std::string& value) {
                request[key] = size_argument(option, value);
            },
            help);
    };
    const auto integer = [&](const char* option, const char* key, const char* help) {
        command.add_option_function<int64_t>(
            option, [&request, key](const int64_t& value) { request[key] = value; }, help);
    };

    define_name(command, request);
    CLI::App& storage = *command.add_option_group("storage", "where its bytes rest");
    text(storage, "--target", "target", "the whole of a configured target");
    path(storage, "--file", "file", "the whole of a regular file or block device");
    storage
        .add_option_function<std::vector<std::string>>(
            "--extent",
            [&request](const std::vector<std::string>& extents) {
                for (const std::string& e : extents) {
                    auto parsed = vql::parse_extent(e);
                    if (!parsed)
                        throw CLI::ValidationError("--extent", parsed.failure().text);
                    request["extents"].push_back(*parsed);
                }
            },
            "a piece of a target, TARGET:OFFSET:LENGTH; may be given many times")
        ->allow_extra_args(false);
    storage.require_option(1);
    text(command, "--format", "format",
         "raw: its bytes are the disk's, even if they look like an image of another format");
    size("--size", "size", "size, if not all of that; bytes or with K, M, G, T");
    size("--chunk-size", "chunk_size", "a power of two, 64K to 1G; default: the largest that fits");
    integer("--queues", "queues", "virtqueues, 1 to 64; default 1");
    integer("--queue-size", "queue_size",
            "the largest ring its guest may use: a power of two, 2 to 1024; default 1024");
    command.add_flag_callback(
        "--read-only", [&request] { request["read_only"] = true; }, "refuse writes");
    command.add_flag_callback(
        "--no-discard", [&request] { request["discard"] = false; },
        "never give its storage's space back: for thick images");
    text(command, "--serial", "serial",
         "what its guest knows it by, up to 20 characters; default: its name, if that is as short");
    text(command, "--frontend", "frontend", "vhost-user or vdpa; default vhost-user");
    text(command, "--lane", "lane",
         "vdpa: auto, poll (pollers serve it) or kernel (the module does); default auto");
    path(command, "--vhost-socket", "socket", "its vhost-user socket; default: RUN_DIR/NAME.sock");
    text(command, "--socket-mode", "socket_mode", "octal; default 0600, 0660 with a group");
    text(command, "--socket-user", "socket_user", "whose its socket is, by name or number");
    text(command, "--socket-group", "socket_group", "… and which group's");
}

void define_disk(CLI::App& app, command_line& line) {
    json& request = line.request;
    CLI::App& disk = *app.add_subcommand("disk", "list and change disks");
    const auto op = [&request](const char* name) {
        return [&request, name] { request["op"] = name; };
    };

    const auto transient = [&request](CLI::App& command) {
        command.add_flag_callback(
            "--transient", [&request] { request["transient"] = true; },
            "until the daemon ends; without it the change is kept");
    };

    disk.require_subcommand(1);
    line.list.width = vql::width_of_output();
    CLI::App& list = *disk.add_subcommand("list", "all disks, or all of one");
    list.add_option("NAME", line.list.name, "one disk; default: all");
    list.add_option("--sort", line.list.sort, "by name (the default), size or client")
        ->check(CLI::IsMember({"name", "size", "client"}));
    list.add_flag("--wide", line.list.wide, "all columns");
    list.callback(op("disk_list"));

    CLI::App& add = *disk.add_subcommand("add", "make a disk that a guest can attach");
    define_disk_add(add, request);
    transient(add);
    add.callback(op("disk_add"));

    CLI::App& rm = *disk.add_subcommand("rm", "remove a disk; its data stays");
    define_name(rm, request);
    rm.add_flag_callback(
        "--force", [&request] { request["force"] = true; }, "even while a client is connected");
    transient(rm);
    rm.callback(op("disk_rm"));

    CLI::App& resize = *disk.add_subcommand("resize", "change a disk's size; its guest is told");
    define_name(resize, request);
    resize
        .add_option_function<std::string>(
            "SIZE",
            [&request](const std::string& text) { request["size"] = size_argument("SIZE", text); },
            "bytes, or with K, M, G, T")
        ->required();
    transient(resize);
    resize.callback(op("disk_resize"));

    CLI::App& policy = *disk.add_subcommand(
        "policy", "have a BPF program of yours remap a vDPA disk in the kernel (bpf/README.md)");
    define_name(policy, request);
    CLI::App& which = *policy.add_option_group("which");
    which.add_option_function<std::string>(
        "FILE", [&request](const std::string& file) { request["object"] = callers_path(file); },
        "BPF object with one struct_ops vqlane_remap_ops");
    which.add_flag_callback(
        "--none", [&request] { request["object"] = nullptr; }, "take it away");
    which.require_option(1);
    policy.callback(op("disk_policy"));
}

int list_local_devices(bool as_json) {
    const auto devices = vql::list_devices({});
    if (!devices)
        return failed(devices.failure().text);
    return print(as_json ? vql::device_json(*devices).dump(2) + "\n" : vql::device_table(*devices));
}

void define_device(CLI::App& app, command_line& line) {
    CLI::App& device = *app.add_subcommand("device", "NVMe drives of this machine; no daemon");
    struct options {
        std::string name, serial;
        bool force = false, persist = false;
    };
    const auto change = [&](const char* name, const char* help, const char* force, auto what) {
        CLI::App& command = *device.add_subcommand(name, help);
        auto given = std::make_shared<options>();
        command.add_option("DEVICE", given->name, "PCI address, or block device as /dev/nvme0n1")
            ->required();
        if (force)
            command.add_flag("--force", given->force, force);
        if (command.get_name() == "bind")
            command.add_flag("--persist", given->persist, "after each boot, too");
        if (command.get_name() == "restore")
            command.add_option("--serial", given->serial, "of the drive that is meant");
        command.callback([&line, given, what] {
            line.local = [&line, given, what] {
                json said = json::array();
                const auto done = what(*given, [&](const std::string& text) {
                    line.as_json ? said.push_back(text) : void(print(text + "\n"));
                });
                if (!done)
                    return failed(done.failure().text);
                const json answer = {{"device", given->name}, {"said", said}};
                return line.as_json ? print(answer.dump(2) + "\n") : 0;
            };
        });
    };

    device.require_subcommand(1);
    device.add_subcommand("list", "all NVMe functions, their drivers, and what uses them")
        ->callback([&line] { line.local = [&line] { return list_local_devices(line.as_json); }; });
    change("bind", "give a drive to the vqlane module",
           "even if it holds partitions or is part of something that is not in use",
           [](const options& o, const vql::progress& say) -> vql::result<void> {
               // By its address: a block device's name is gone with the block device.
               const auto bdf = vql::device_address({}, o.name);
               if (!bdf)
                   return bdf.failure();
               auto done = vql::bind_device({}, *bdf, o.force, say);
               if (!done || !o.persist)
                   return done;
               std::error_code failed;
               done = vql::persist_device(
                   {}, *bdf, std::filesystem::read_symlink("/proc/self/exe", failed), say);
               return done ? done
                           : vql::error{*bdf + " is bound, but will not be at the next boot: " +
                                        done.failure().text};
           });
    change("unbind", "give it back to the kernel's nvme driver",
           "even while a daemon has it: its disks there get I/O errors",
           [](const options& o, const vql::progress& say) {
               return vql::unbind_device({}, o.name, o.force, say);
           });
    change("restore", "what --persist has udev run", nullptr,
           [](const options& o, const vql::progress& say) {
               return vql::restore_device({}, o.name, o.serial, say);
           });
}

double watch_argument(const std::string& text) {
    if (text.empty()) // --watch alone
        return 1;
    char* end = nullptr;
    const double seconds = std::strtod(text.c_str(), &end);
    if (*end || !(seconds >= 0.1 && seconds <= 3600))
        throw CLI::ValidationError("--watch", "\"" + text +
                                                  "\" is not seconds from 0.1 to 3600 (NAME goes "
                                                  "before --watch)");
    return seconds;
}

void define_stats(CLI::App& app, command_line& line) {
    CLI::App& stats = *app.add_subcommand(
        "stats", "requests and latencies since each disk came; rates with --watch");
    stats.add_option_function<std::string>(
        "NAME", [&line](const std::string& name) { line.request["name"] = name; },
        "one disk; default: all, and the pollers");
    stats
        .add_option_function<std::string>(
            "--watch",
            [&line](const std::string& text) { line.watch_seconds = watch_argument(text); },
            "again every SECONDS (default 1), until Ctrl-C")
        ->type_name("SECONDS")
        ->expected(0, 1);
    stats.callback([&line] { line.request["op"] = "stats"; });
}

void define_trace(CLI::App& app, command_line& line) {
    CLI::App& trace = *app.add_subcommand("trace", "one line for each request that ends");
    auto given = std::make_shared<vql::trace_options>();
    trace.add_option("--disk", given->disk, "one disk's; default: all");
    trace.add_option_function<std::string>(
        "--op",
        [given](const std::string& text) {
            if (auto op = vql::parse_op(text); !op)
                throw CLI::ValidationError("--op", op.failure().text);
            given->op = text;
        },
        "read, write, flush, discard, write_zeroes, get_id or other; the beginning is enough");
    trace.add_option_function<std::string>(
        "--slower-than",
        [given](const std::string& text) {
            auto ns = vql::parse_duration(text);
            if (!ns)
                throw CLI::ValidationError("--slower-than", ns.failure().text);
            given->slower_than_ns = *ns;
        },
        "those that took so long, and slower ones: 500us, 1ms, …");
    trace.add_option("--count", given->count, "end after so many; default: at Ctrl-C");
    trace.callback([&line, given] {
        given->as_json = line.as_json;
        line.session = [given](client& daemon) { return vql::trace(daemon, *given); };
    });
}

void define_top(CLI::App& app, command_line& line) {
    CLI::App& top = *app.add_subcommand("top", "what each disk does now");
    auto given = std::make_shared<vql::top_options>();
    top.add_option("--interval", given->seconds, "seconds between samples, 0.1 to 3600; default 1")
        ->check(CLI::Range(0.1, 3600.0));
    top.add_option("--count", given->count, "end after so many samples; default: at q or Ctrl-C");
    top.add_option_function<std::string>(
           "--sort", [given](const std::string& key) { given->view.sort = key[0]; },
           "by name (the default), iops, mb, latency or errors; keys n i m l e change it")
        ->check(CLI::IsMember({"name", "iops", "mb", "latency", "errors"}));
    top.callback([&line, given] {
        given->as_json = line.as_json;
        line.session = [given](client& daemon) { return vql::top(daemon, *given); };
    });
}

void define_bench(CLI::App& app, command_line& line) {
    CLI::App& bench =
        *app.add_subcommand("bench", "put a load on a disk, and measure it; no daemon");
    auto given = std::make_shared<vql::bench_options>();
    vql::define_bench_options(bench, *given);
    bench.callback([&line, given] {
        if (given->write_percent && !given->destroy_data)
            throw CLI::ValidationError("--write", "overwrites what is on the disk; if that may be "
                                                  "lost, add --destroy-data");
        given->as_json = line.as_json;
        line.local = [given] {
            const auto text = vql::bench_disk(*given);
            return text ? print(*text) : failed(text.failure().text);
        };
    });
}

void define_version(CLI::App& app, command_line& line) {
    app.add_subcommand("version", "of this command, the daemon and the module")->callback([&line] {
        line.local = [&line] {
            const json all = vql::versions(line.socket, patience);
            return print(line.as_json ? all.dump(2) + "\n" : vql::version_text(all));
        };
    });
}

// Rows for people. @before: an earlier result of a watched command, or null.
std::string render(const command_line& line, const json& value, const json& before,
                   double seconds) {
    if (line.as_json) // watched: one object a line
        return value.dump(line.watch_seconds > 0 ? -1 : 2) + "\n";
    if (line.request.at("op") == "disk_list")
        return vql::disk_list_text(value, line.list);
    if (line.request.at("op") == "reload")
        return vql::reload_text(value);
    if (line.request.at("op") != "stats")
        return value.is_null()
                   ? ""
                   : vql::disk_table(value.is_array() ? value : json::array({value}), true);
    const bool rates = line.watch_seconds > 0;
    std::string text = vql::op_table(value, rates, before, seconds);
    if (!line.request.contains("name"))
        text += "\n" + vql::poller_table(value, rates, before, seconds);
    return text;
}

int run(const command_line& line) {
    auto daemon = client::connect(line.socket, patience);
    if (!daemon)
        return failed(daemon.failure().text);
    if (line.session) {
        const auto done = line.session(*daemon);
        return done ? 0 : failed(done.failure().text);
    }

    json request = line.request;
    const auto op = request.at("op").get<std::string>();
    if (op == "disk_add" || op == "disk_rm" || op == "disk_resize" ||
        op == "reload") // may have to wait for storage
        request["progress"] = true;
    const bool redraw = vql::can_redraw() && !line.as_json;
    json before;
    clock::time_point before_at{};
    for (clock::time_point next = clock::now();;) {
        auto value = daemon->call(request);
        if (!value)
            return failed(value.failure().text);
        const clock::time_point now = clock::now();
        if (line.request.at("op") == "disk_list")
            if (auto ok = vql::choose_disks(*value, line.list); !ok)
                return failed(ok.failure().text);
        std::string text =
            render(line, *value, before, std::chrono::duration<double>(now - before_at).count());
        if (line.watch_seconds == 0) {
            const int err = print(text);
            return err || op != "reload" || vql::reload_complete(*value) ? err : 1;
        }
        // To the top, then clear what follows: no flicker. Elsewhere a blank line between tables.
        if (redraw)
            text.insert(0, "\033[H\033[J");
        else if (!line.as_json)
            text.append("\n");
        if (int err = print(text))
            return err;
        before = std::move(*value);
        before_at = now;
        next += std::chrono::duration_cast<clock::duration>(
            std::chrono::duration<double>(line.watch_seconds));
        next = std::max(next, now); // a sample that took too long is not made up for
        std::this_thread::sleep_until(next);
    }
}

// Does the command line end before its command does? Whatever else is wrong with it, a list of
// commands is no help.
bool lacks_command(const CLI::App& app) {
    const CLI::App* at = &app;
    while (!at->get_subcommands().empty())
        at = at->get_subcommands().front();
    return !at->get_subcommands([](const CLI::App* a) { return !a->get_name().empty(); }).empty();
}

int parse_and_run(int argc, char** argv) {
    CLI::App app("The operator's command of vqlaned, virtio block devices for virtual machines.",
                 "vqlane");
    command_line line;

    app.add_option("--socket", line.socket, "the daemon's control socket")->capture_default_str();
    app.add_flag("--json", line.as_json, "the answer as JSON instead of a table");
    app.require_subcommand(1);
    app.fallthrough();
    app.set_version_flag("--version", std::string("vqlane ") + vql::version());
    define_disk(app, line);
    define_version(app, line);
    app.add_subcommand("reload", "read the configuration again, and change what differs")
        ->callback([&line] { line.request["op"] = "reload"; });
    define_stats(app, line);
    define_top(app, line);
    define_trace(app, line);
    define_bench(app, line);
    define_device(app, line);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        if (e.get_exit_code() == int(CLI::ExitCodes::Success))
            return app.exit(e); // --help, --version
        errors_as_json = line.as_json;
        const std::string unknown = vql::unknown_word(app, argc, argv);
        failed(unknown.empty() ? e.what() : unknown, 2);
        if (!errors_as_json && lacks_command(app))
            std::fputs(
                "Commands: disk list, disk add, disk rm, disk resize, disk policy, reload, stats, "
                "top, trace, bench, device list, device bind, device unbind, version; "
                "each has --help.\n",
                stderr);
        return 2;
    }
    errors_as_json = line.as_json;
    try {
        return line.local ? line.local() : run(line);
    } catch (const json::exception& e) {
        return failed("the daemon at " + line.socket +
                      " sent an answer that vqlane cannot read (are " +
                      "vqlane and vqlaned of one version?): " + e.what());
    }
}

} // namespace

int main(int argc, char** argv) {
    try {
        return parse_and_run(argc, argv);
    } catch (const std::exception& e) {
        return failed(e.what());
    }
}
