// SPDX-License-Identifier: GPL-2.0-only
// The control socket, from its client's side: one JSON object a line, each way.
#pragma once

#include "base/fd.h"
#include "base/result.h"

#include <chrono>
#include <string>
#include <sys/types.h>

#include <nlohmann/json_fwd.hpp>

namespace vql {

class client {
  public:
    // @timeout holds for connecting, and for each call from its first byte to its answer's last.
    static result<client> connect(const std::string& path, std::chrono::milliseconds timeout);

    // The "result" of the daemon's answer. An error is the daemon's own text, or says why there was
    // no answer; then this connection is not to be used again.
    result<nlohmann::json> call(const nlohmann::json& request);

    // The daemon's process.
    pid_t peer() const;

  private:
    client(std::string path, std::chrono::milliseconds timeout, unique_fd fd)
        : path_(std::move(path)), timeout_(timeout), fd_(std::move(fd)) {}
    result<std::string> exchange(const std::string& request);

    std::string path_;
    std::chrono::milliseconds timeout_;
    unique_fd fd_;
};

} // namespace vql
