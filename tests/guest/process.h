// SPDX-License-Identifier: GPL-2.0-only
// Programs under test: started, watched, ended by pid, each in a directory of its own.
#pragma once

#include "posix.h"

#include <chrono>
#include <string>
#include <sys/types.h>
#include <vector>

namespace vql::guest {

// A fresh directory with a short path (a socket's path has 107 characters), removed at the end.
class temporary_directory {
  public:
    explicit temporary_directory(const std::string& parent = "/tmp");
    temporary_directory(const temporary_directory&) = delete;
    temporary_directory& operator=(const temporary_directory&) = delete;
    ~temporary_directory();

    const std::string& path() const { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

std::string read_text_file(const std::string& path);
void write_text_file(const std::string& path, const std::string& text);
// A sparse file of that size.
void make_file(const std::string& path, uint64_t bytes);

class child_process {
  public:
    // Standard output and error are appended to the files named (empty: /dev/null).
    child_process(const std::vector<std::string>& arguments, const std::string& out_path,
                  const std::string& err_path, const std::vector<std::string>& environment = {});
    child_process(const child_process&) = delete;
    child_process& operator=(const child_process&) = delete;
    // Ends it with SIGKILL if it still runs.
    ~child_process();

    pid_t pid() const { return pid_; }
    bool running();
    void send_signal(int number);
    // Waits for its end. Exit status, or 128 + the signal that ended it; throws timeout_error.
    int wait(milliseconds timeout = default_timeout());
    // CPU time used by all its threads, those that have ended too.
    std::chrono::nanoseconds cpu_time() const;

  private:
    pid_t pid_ = -1;
    int status_ = -1;
    bool reaped_ = false;
};

struct command_result {
    int status = -1;
    std::string out;
    std::string err;
};

// Runs a program to its end.
command_result run_command(const std::vector<std::string>& arguments,
                           milliseconds timeout = default_timeout());

// The first of $PATH that has the program, or an empty string.
std::string find_program(const std::string& name);

} // namespace vql::guest
