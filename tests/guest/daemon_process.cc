// SPDX-License-Identifier: GPL-2.0-only
#include "daemon_process.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

namespace vql::guest {
namespace {

bool is_bpffs(const char* path) {
    struct statfs info {};
    return statfs(path, &info) == 0 && static_cast<unsigned long>(info.f_type) == BPF_FS_MAGIC;
}

} // namespace

std::string built_program(const std::string& name) {
    const char* build = std::getenv("VQL_BUILD");
    return std::string(build != nullptr ? build : "build") + "/" + name;
}

daemon_process::daemon_process(const std::string& config, std::vector<std::string> arguments) {
    std::string host_bpffs = "/sys/fs/bpf";
    if (is_bpffs(host_bpffs.c_str())) {
        static int count = 0;
        bpf_dir_ =
            host_bpffs + "/vqlane-test-" + std::to_string(getpid()) + "-" + std::to_string(++count);
    } else {
        // A machine without systemd: a BPF file system of our own will do.
        std::string mount_point = directory_ / "bpf";
        std::filesystem::create_directory(mount_point);
        bpf_dir_ = mount_point + "/vqlane";
        if (mount("bpf", mount_point.c_str(), "bpf", 0, nullptr) == 0) {
            own_bpffs_.where = mount_point;
        } else {
            bpf_refusal_ =
                "no BPF file system, and none can be mounted: " + std::string(std::strerror(errno));
        }
    }
    std::filesystem::create_directory(run_dir());
    write_text_file(directory_ / "vqlaned.toml", config);
    arguments_ = {built_program("vqlaned"), "--config", directory_ / "vqlaned.toml", "--run-dir",
                  run_dir()};
    if (std::find(arguments.begin(), arguments.end(), "--bpf-dir") == arguments.end()) {
        arguments.insert(arguments.end(), {"--bpf-dir", bpf_dir_});
    }
    if (std::find(arguments.begin(), arguments.end(), "--state-dir") == arguments.end()) {
        arguments.insert(arguments.end(), {"--state-dir", directory_ / "state"});
    }
    arguments_.insert(arguments_.end(), arguments.begin(), arguments.end());
    start();
}

daemon_process::~daemon_process() {
    child_.reset();
    left_.clear();
    std::error_code ignored;
    if (bpf_refusal_.empty()) {
        std::filesystem::remove_all(bpf_dir_, ignored); // pins that a killed daemon left
    }
}

daemon_process::bpffs::~bpffs() {
    if (!where.empty()) {
        umount2(where.c_str(), MNT_DETACH);
    }
}

void daemon_process::start() {
    begin();
    wait_ready();
}

void daemon_process::begin() {
    begun_at_ = log().size();
    ended_by_us_ = false;
    child_ = std::make_unique<child_process>(arguments_, directory_ / "log", directory_ / "log");
    until_it(
        [this] {
            try {
                control();
                return true;
            } catch (const guest_error&) {
                return false; // not yet: there is no socket, or that of one that is dead
            }
        },
        "answer commands");
}

void daemon_process::wait_ready() {
    until_it([this] { return log().find("info: ready:", begun_at_) != std::string::npos; },
             "get ready");
}

void daemon_process::until_it(const std::function<bool()>& does, const char* what) {
    for (const deadline until(default_timeout()); !does(); usleep(1000)) {
        if (!child_->running()) {
            throw guest_error("vqlaned ended at its start with status " +
                              std::to_string(child_->wait()) + ":\n" + log().substr(begun_at_));
        }
        if (until.passed()) {
            throw timeout_error(std::string("vqlaned does not ") + what + ":\n" +
                                log().substr(begun_at_));
        }
    }
}

void daemon_process::kill() {
    ended_by_us_ = true;
    child_->send_signal(SIGKILL);
    child_->wait();
}

void daemon_process::kill_and_leave() {
    ended_by_us_ = true;
    child_->send_signal(SIGKILL);
    left_.push_back(std::move(child_));
}

int daemon_process::terminate() {
    ended_by_us_ = true;
    child_->send_signal(SIGTERM);
    return child_->wait();
}

bool daemon_process::wait_log(const std::string& text, size_t from, milliseconds timeout) const {
    deadline until(timeout);
    for (;;) {
        if (log().find(text, from) != std::string::npos) {
            return true;
        }
        if (until.passed()) {
            return false;
        }
        usleep(1000);
    }
}

std::string daemon_process::complaint() {
    if (!ended_by_us_ && !child_->running()) {
        return "vqlaned ended by itself with status " + std::to_string(child_->wait()) + ":\n" +
               log();
    }
    static constexpr std::array reports{"ERROR: AddressSanitizer", "WARNING: ThreadSanitizer",
                                        "ERROR: LeakSanitizer", "runtime error:", "SUMMARY: "};
    std::string text = log();
    for (const char* report : reports) {
        if (text.find(report) != std::string::npos) {
            return "a sanitizer reported:\n" + text;
        }
    }
    return "";
}

} // namespace vql::guest
