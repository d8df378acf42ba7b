# Installs ai-agent on Windows. For Intune: a Win32 app with this script, ai-agent.exe, config.toml,
# managed-settings.json, token and hmac-secret in one folder, installed as SYSTEM with
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File intune.ps1
# Running it again upgrades the installation. It writes no secret into a log.
#
# The enrollment token differs on each machine, so it is not part of the app. Before or after, run the
# script with the token that `siem-server tokens new --scope enroll --machine ID` printed:
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File intune.ps1 -EnrollToken siem_...
# ID is (Get-ItemProperty HKLM:\SOFTWARE\Microsoft\Cryptography).MachineGuid.
#Requires -RunAsAdministrator
param([string]$EnrollToken)
$ErrorActionPreference = 'Stop'
$from = $PSScriptRoot
$program = Join-Path $env:ProgramFiles 'ai-agent'
$machine = Join-Path $env:ProgramData 'ai-agent'
$exe = Join-Path $program 'ai-agent.exe'
$task = 'ai-agent'

# A running task locks the program file.
if (Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue) {
    Stop-ScheduledTask -TaskName $task
    Get-Process -Name 'ai-agent' -ErrorAction SilentlyContinue |
        Where-Object { $_.Path -eq $exe } | Stop-Process -Force
}
New-Item -ItemType Directory -Force -Path $program, $machine | Out-Null

# In %ProgramData% every user may create files and folders, even this one: restrict it to administrators.
# S-1-5-18 is SYSTEM, S-1-5-32-544 the administrators, S-1-5-32-545 the users, in every language.
icacls.exe $machine /setowner '*S-1-5-32-544' /T | Out-Null
icacls.exe $machine /inheritance:r /grant '*S-1-5-18:(OI)(CI)F' '*S-1-5-32-544:(OI)(CI)F' '*S-1-5-32-545:(OI)(CI)RX' | Out-Null
if ($LASTEXITCODE -ne 0) { throw "icacls failed on $machine" }

# A token on a command line is in the log of processes: this one is valid for one machine.
if ($EnrollToken) {
    $file = Join-Path $machine 'enroll-token'
    [IO.File]::WriteAllText($file, "$EnrollToken`n")
    icacls.exe $file /reset | Out-Null
    if ($LASTEXITCODE -ne 0) { throw "icacls failed on $file" }
    if (-not (Test-Path (Join-Path $from 'ai-agent.exe'))) { return }
}

Copy-Item -Force (Join-Path $from 'ai-agent.exe') $exe
foreach ($name in 'token', 'hmac-secret') {
    $secret = Join-Path $machine $name
    Copy-Item -Force (Join-Path $from $name) $secret
    # A file created here by a user before keeps its own access rules, and the agent would refuse it.
    icacls.exe $secret /reset | Out-Null
    if ($LASTEXITCODE -ne 0) { throw "icacls failed on $secret" }
}

# Written without a byte order mark, which Windows PowerShell's own Set-Content would add.
$utf8 = New-Object System.Text.UTF8Encoding $false
$config = [IO.File]::ReadAllText((Join-Path $from 'config.toml'))
$config = $config.Replace('/etc/ai-agent/', $machine.Replace('\', '/') + '/')
$new = Join-Path $machine 'config.toml.new'
[IO.File]::WriteAllText($new, $config, $utf8)
& $exe config check $new
if ($LASTEXITCODE -ne 0) { Remove-Item $new; throw 'config.toml is invalid: the current file is unchanged' }
Move-Item -Force $new (Join-Path $machine 'config.toml')

# Claude Code's hooks run without a shell: Windows may have none that expands $HOME.
$settings = [IO.File]::ReadAllText((Join-Path $from 'managed-settings.json')) | ConvertFrom-Json
foreach ($hook in 'SessionStart', 'UserPromptSubmit') {
    $call = $settings.hooks.$hook[0].hooks[0]
    $call.command = $exe
    $call | Add-Member -Force -NotePropertyName args -NotePropertyValue @('check', '--hook', $hook)
}
$folder = Join-Path $env:ProgramFiles 'ClaudeCode\managed-settings.d'
New-Item -ItemType Directory -Force -Path $folder | Out-Null
$json = $settings | ConvertTo-Json -Depth 8
[IO.File]::WriteAllText((Join-Path $folder '50-ai-agent.json'), $json, $utf8)

# One task for all users, each in their own session and with their own rights. conhost hides the console
# window.
$action = New-ScheduledTaskAction -Execute "$env:SystemRoot\System32\conhost.exe" `
    -Argument "--headless `"$exe`" run"
$trigger = New-ScheduledTaskTrigger -AtLogOn
# Starts the agent again every five minutes, in case a user ended it: if it is running, the second one
# finds the state directory locked and ends.
$trigger.Repetition = (New-ScheduledTaskTrigger -Once -At (Get-Date) `
    -RepetitionInterval (New-TimeSpan -Minutes 5)).Repetition
$principal = New-ScheduledTaskPrincipal -GroupId 'S-1-5-32-545' -RunLevel Limited
$options = New-ScheduledTaskSettingsSet -MultipleInstances Parallel -AllowStartIfOnBatteries `
    -DontStopIfGoingOnBatteries -ExecutionTimeLimit ([TimeSpan]::Zero) -StartWhenAvailable `
    -RestartCount 999 -RestartInterval (New-TimeSpan -Minutes 1) -Priority 5
Register-ScheduledTask -Force -TaskName $task -Action $action -Trigger $trigger `
    -Principal $principal -Settings $options | Out-Null
# Starts the agent for the user who is signed in; fails if there is none.
Start-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue
