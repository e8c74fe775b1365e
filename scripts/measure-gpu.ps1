# Measures the GPU of this machine: as scripts/measure-gpu.sh, for Windows (DX12 or Vulkan).
#
#   powershell -ExecutionPolicy Bypass -File scripts\measure-gpu.ps1
#   powershell -ExecutionPolicy Bypass -File scripts\measure-gpu.ps1 -Offline --backend nvidia --minutes 5
#
# Needs Rust (https://rustup.rs) unless -Offline, which runs the attn.exe in target\release as it is.
param([switch]$Offline, [Parameter(ValueFromRemainingArguments = $true)][string[]]$Arguments = @())
$ErrorActionPreference = 'Stop'
Set-Location (Join-Path $PSScriptRoot '..')
if (-not $Offline) {
    cargo build --release -p wgpu-attention-cli
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}
& target\release\attn.exe measure @Arguments
exit $LASTEXITCODE
