// SPDX-License-Identifier: GPL-2.0-only
// The real vqlaned, in a run directory of its own.
#pragma once

#include "control_client.h"
#include "process.h"

#include <functional>
#include <memory>

namespace vql::guest {

// $VQL_BUILD/NAME, or build/NAME.
std::string built_program(const std::string& name);

class daemon_process {
  public:
    // config: the TOML text. Starts the daemon and waits until it is ready; throws with its log if
    // it ends before. Run dir and config are in directory(). BPF maps are pinned in bpf_dir();
    // where no BPF file system can be had the daemon runs with "auto" and does without.
    explicit daemon_process(const std::string& config, std::vector<std::string> arguments = {});
    daemon_process(const daemon_process&) = delete;
    daemon_process& operator=(const daemon_process&) = delete;
    ~daemon_process();

    void start(); // begin(), and wait_ready()
    // Comes back as soon as the daemon answers commands.
    void begin();
    void wait_ready();
    void kill(); // SIGKILL
    // … for one that cannot end yet, whose storage hangs: it is waited for at our end.
    void kill_and_leave();
    int terminate(); // SIGTERM; its exit status
    bool running() { return child_ && child_->running(); }
    pid_t pid() const { return child_->pid(); }
    std::chrono::nanoseconds cpu_time() const { return child_->cpu_time(); }

    const temporary_directory& directory() const { return directory_; }
    std::string run_dir() const { return directory_ / "run"; }
    std::string socket(const std::string& disk) const { return run_dir() + "/" + disk + ".sock"; }
    std::string control_socket() const { return run_dir() + "/control.sock"; }
    const std::string& bpf_dir() const { return bpf_dir_; }
    // Why BPF maps can't be pinned here; empty if they can.
    const std::string& bpf_refusal() const { return bpf_refusal_; }
    control_client control() const { return control_client(control_socket()); }

    std::string log() const { return read_text_file(directory_ / "log"); }
    // Waits until text is in the log (from byte `from` on); false if it does not come.
    bool wait_log(const std::string& text, size_t from = 0,
                  milliseconds timeout = default_timeout()) const;
    // Empty, or what is wrong: the daemon has ended by itself, or a sanitizer has reported.
    std::string complaint();

  private:
    void until_it(const std::function<bool()>& does, const char* what);

    // A BPF file system of our own, at where; it goes also when a constructor ends by an exception.
    struct bpffs {
        std::string where;
        bpffs() = default;
        bpffs(const bpffs&) = delete;
        bpffs& operator=(const bpffs&) = delete;
        ~bpffs();
    };

    temporary_directory directory_;
    std::vector<std::string> arguments_;
    std::string bpf_dir_;
    std::string bpf_refusal_;
    bpffs own_bpffs_;
    size_t begun_at_ = 0; // in the log
    bool ended_by_us_ = false;
    std::unique_ptr<child_process> child_;
    std::vector<std::unique_ptr<child_process>> left_;
};

} // namespace vql::guest
