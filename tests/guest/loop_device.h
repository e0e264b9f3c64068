// SPDX-License-Identifier: GPL-2.0-only
// A loop device over a file, where one can be had.
#pragma once

#include "process.h"

#include <unistd.h>

namespace vql::guest {

// path() is empty, and refusal() says why, where none can be had.
class loop_device {
  public:
    explicit loop_device(const std::string& file, const std::vector<std::string>& options = {}) {
        std::vector<std::string> command = {"losetup", "--find", "--show", "--direct-io=on"};
        command.insert(command.end(), options.begin(), options.end());
        command.push_back(file);
        command_result made = run_command(command);
        if (made.status != 0 || access(first_line(made.out).c_str(), R_OK) != 0)
            refusal_ = "no loop device: " + made.err;
        if (made.status == 0)
            path_ = first_line(made.out);
    }
    loop_device(const loop_device&) = delete;
    loop_device& operator=(const loop_device&) = delete;
    ~loop_device() {
        if (!path_.empty())
            run_command({"losetup", "--detach", path_});
    }
    const std::string& path() const { return path_; }
    const std::string& refusal() const { return refusal_; }

  private:
    static std::string first_line(const std::string& text) {
        return text.substr(0, text.find('\n'));
    }
    std::string path_, refusal_;
};

} // namespace vql::guest
