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
    // @patience: for so long the daemon may accept no connection, take no request, or say nothing.
    // One that is at work on a request for longer (it waits for storage, or for a guest) is waited
    // for as long as it answers others; one that does not even do that is given up.
    static result<client> connect(const std::string& path, std::chrono::milliseconds patience);

    // The "result" of the daemon's answer. An error is the daemon's own text, or says why there was
    // no answer; then this connection is not to be used again.
    result<nlohmann::json> call(const nlohmann::json& request);

    // The daemon's process.
    pid_t peer() const;

  private:
    client(std::string path, std::chrono::milliseconds patience, unique_fd fd)
        : path_(std::move(path)), patience_(patience), fd_(std::move(fd)) {}
    result<std::string> exchange(const std::string& request, bool wait);
    bool answers_others() const;
    error silent() const;

    std::string path_;
    std::chrono::milliseconds patience_;
    unique_fd fd_;
};

} // namespace vql
