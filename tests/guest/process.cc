// SPDX-License-Identifier: GPL-2.0-only
#include "process.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vql::guest {

temporary_directory::temporary_directory(const std::string& parent)
    : path_(parent + "/vql-XXXXXX") {
    if (mkdtemp(path_.data()) == nullptr) {
        throw_errno("mkdtemp in " + parent);
    }
}

temporary_directory::~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

std::string read_text_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

void write_text_file(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << text;
    file.close();
    if (!file) {
        throw guest_error("cannot write " + path);
    }
}

void make_file(const std::string& path, uint64_t bytes) {
    unique_fd file(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!file || ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
        throw_errno("cannot create " + path);
    }
}

child_process::child_process(const std::vector<std::string>& arguments, const std::string& out_path,
                             const std::string& err_path,
                             const std::vector<std::string>& environment) {
    auto open_log = [](const std::string& path) {
        unique_fd file(path.empty()
                           ? open("/dev/null", O_WRONLY | O_CLOEXEC)
                           : open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
        if (!file) {
            throw_errno("cannot open " + path);
        }
        return file;
    };
    unique_fd in(open("/dev/null", O_RDONLY | O_CLOEXEC));
    unique_fd out = open_log(out_path);
    unique_fd err = open_log(err_path);
    std::vector<char*> argv;
    for (const std::string& argument : arguments) {
        argv.push_back(const_cast<char*>(argument.c_str()));
    }
    argv.push_back(nullptr);
    // Before the fork: the child of a program with threads must not allocate.
    std::vector<char*> envp;
    for (char** entry = environ; *entry != nullptr; entry++) {
        envp.push_back(*entry);
    }
    for (const std::string& entry : environment) {
        envp.push_back(const_cast<char*>(entry.c_str()));
    }
    envp.push_back(nullptr);
    pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) {
        throw_errno("fork");
    }
    if (pid_ == 0) {
        // It shall not outlive the test, however that ends.
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(127);
        }
        dup2(in.get(), 0);
        dup2(out.get(), 1);
        dup2(err.get(), 2);
        execvpe(argv[0], argv.data(), envp.data());
        _exit(127);
    }
}

child_process::~child_process() {
    if (running()) {
        send_signal(SIGKILL);
        waitpid(pid_, &status_, 0);
    }
}

bool child_process::running() {
    if (!reaped_ && waitpid(pid_, &status_, WNOHANG) == pid_) {
        reaped_ = true;
    }
    return !reaped_;
}

void child_process::send_signal(int number) {
    if (!reaped_) {
        kill(pid_, number);
    }
}

int child_process::wait(milliseconds timeout) {
    deadline until(timeout);
    while (running()) {
        if (until.passed()) {
            throw timeout_error("process " + std::to_string(pid_) + " does not end");
        }
        usleep(1000);
    }
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
}

std::chrono::nanoseconds child_process::cpu_time() const {
    // Not from schedstat: on a kernel without SCHEDSTATS that is all zeros, and nothing would ever
    // be too much.
    clockid_t clock;
    timespec t;
    if (clock_getcpuclockid(pid_, &clock) || clock_gettime(clock, &t)) {
        throw guest_error("process " + std::to_string(pid_) + " has no CPU clock");
    }
    return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

command_result run_command(const std::vector<std::string>& arguments, milliseconds timeout) {
    temporary_directory dir;
    command_result result;
    child_process child(arguments, dir / "out", dir / "err");
    result.status = child.wait(timeout);
    result.out = read_text_file(dir / "out");
    result.err = read_text_file(dir / "err");
    return result;
}

std::string find_program(const std::string& name) {
    const char* path = std::getenv("PATH");
    std::istringstream folders(path != nullptr ? path : "/usr/bin:/bin");
    for (std::string folder; std::getline(folders, folder, ':');) {
        std::string candidate = folder + "/" + name;
        if (access(candidate.c_str(), X_OK) == 0) {
            return candidate;
        }
    }
    std::string admin = "/usr/sbin/" + name;
    return access(admin.c_str(), X_OK) == 0 ? admin : "";
}

} // namespace vql::guest
