// SPDX-License-Identifier: GPL-2.0-only
#include "cli/version.h"

#include "base/version.h"
#include "cli/client.h"

#include <fstream>
#include <sys/utsname.h>

#include <nlohmann/json.hpp>

namespace vql {

using nlohmann::json;

namespace {

constexpr int json_version = 2;

// What sysfs says of the module; a module without a version is an older one.
json module_version() {
    if (!std::ifstream("/sys/module/vqlane/initstate"))
        return nullptr;
    std::string text;
    std::ifstream file("/sys/module/vqlane/version");
    return std::getline(file, text) ? text : "unknown";
}

} // namespace

json versions(const std::string& socket, std::chrono::milliseconds patience) {
    json all = {{"json", json_version}, {"vqlane", version()}, {"module", module_version()}};
    utsname host{};
    if (uname(&host) == 0)
        all["kernel"] = host.release;
    all["vqlaned"] = nullptr;
    auto daemon = client::connect(socket, patience);
    if (!daemon) {
        all["vqlaned_error"] = daemon.failure().text;
        return all;
    }
    auto answer = daemon->call({{"op", "version"}});
    if (answer && answer->is_object() && answer->contains("version"))
        all["vqlaned"] = answer->at("version");
    else // one from before there was this question answers "unknown"
        all["vqlaned_error"] = answer ? "its answer has no version" : answer.failure().text;
    return all;
}

std::string version_text(const json& all) {
    const auto text = [&](const char* key, const std::string& absent) {
        return all.at(key).is_string() ? all.at(key).get<std::string>() : absent;
    };
    const std::string why = all.value("vqlaned_error", std::string());
    return "vqlane   " + text("vqlane", "unknown") + "\nvqlaned  " + text("vqlaned", why) +
           "\nmodule   " + text("module", "not loaded") + "\nkernel   " +
           text("kernel", "unknown") + "\n";
}

} // namespace vql
