# Make this machine's freshclam use the gateway @GATEWAY@.
#
# Assign it by Group Policy: Computer Configuration, Policies, Windows Settings, Scripts, Startup, PowerShell
# Scripts. It runs as SYSTEM at each start, and changes nothing where nothing is to be done. It also runs by
# hand in a PowerShell (5.1 or newer) of an administrator. Exit code: 0 done, 1 failed.
#
#   -Conf FILE       freshclam.conf, if it isn't in C:\Program Files\ClamAV
#   -Freshclam FILE  freshclam.exe, if it isn't beside freshclam.conf
#   -Service NAME    the service that runs freshclam, if there is one
@CREDENTIALS@param(
    [string] $Conf = "$env:ProgramFiles\ClamAV\freshclam.conf",
    [string] $Freshclam,
    [string] $Service = 'freshclam'
)
$ErrorActionPreference = 'Stop'

$lines = @'
@LINES@
'@ -split "`r?`n"

$certificates = @'
@CERTIFICATES@
'@

try {
    if (-not (Test-Path $Conf)) { throw "there is no $Conf; name it with -Conf" }
    if (-not $Freshclam) { $Freshclam = Join-Path (Split-Path $Conf) 'freshclam.exe' }
    if (-not (Test-Path $Freshclam)) { throw "there is no $Freshclam; name it with -Freshclam" }
@GIVEN@    # A run that was interrupted has left the former file under this name.
    $untested = "$Conf.clamproxy"
    if (Test-Path $untested) {
        Move-Item $untested $Conf -Force
        Get-Service -Name $Service -ErrorAction SilentlyContinue | Where-Object StartType -eq 'Automatic' | Start-Service
        Write-Output "clamproxy: an earlier run was interrupted; the former $Conf is in place again"
    }

    # freshclam on Windows trusts what the system trusts. The certificate is valid only for the gateway's names.
    foreach ($found in [regex]::Matches($certificates, '(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----')) {
        $file = [IO.Path]::GetTempFileName()
        [IO.File]::WriteAllText($file, $found.Value)
        certutil.exe -f -addstore Root $file | Out-Null
        $code = $LASTEXITCODE
        Remove-Item $file
        if ($code -ne 0) { throw 'certutil could not add the certificate' }
    }

    # The former file without what the gateway's lines replace, and then these lines.
    $former = [IO.File]::ReadAllText($Conf)
    $kept = [regex]::Replace($former, '(?ms)^# Begin clamproxy\r?$(?:(?!^# Begin clamproxy).)*?^# End clamproxy\r?$\n?', '')
    $kept = [regex]::Replace($kept, '(?m)^[ \t]*(@REPLACED@)[ \t].*\n?', '').TrimEnd()
    $block = @('# Begin clamproxy') + $lines + @('# End clamproxy')
    $new = (@($kept) + $block -join "`r`n") + "`r`n"
    if ($new -ceq $former) {
        Write-Output "clamproxy: $Conf already says so; nothing was changed"
        exit 0
    }

    # Without a proxy, whatever the system's setting is.
    $request = [Net.WebRequest]::Create('@URL@/livez')
    $request.Proxy = $null
    $request.Timeout = 20000
    try { $request.GetResponse().Close() } catch { throw 'the gateway does not answer at @URL@; nothing was changed' }

    $backup = '{0}.{1}.bak' -f $Conf, (Get-Date).ToUniversalTime().ToString('yyyyMMddTHHmmssZ')
    $running = Get-Service -Name $Service -ErrorAction SilentlyContinue | Where-Object Status -eq 'Running'
    try {
        if ($running) { Stop-Service -Name $Service }
        # The file as a whole, with its former rights; Windows keeps the former one under the third name.
        $part = "$Conf.part"
        [IO.File]::WriteAllText($part, $new)
        [IO.File]::Replace($part, $Conf, $untested)
        # PowerShell 5.1 would take a line on the standard error for an error of its own.
        $log = & { $ErrorActionPreference = 'Continue'; & $Freshclam "--config-file=$Conf" --stdout 2>&1 }
        if ($LASTEXITCODE -ne 0) {
            throw ("freshclam failed with exit code $LASTEXITCODE, so the former file is in place again: " + ($log | Select-Object -Last 3))
        }
        Move-Item $untested $backup
        if ("$log" -match 'still on cool-down') {
            Write-Output 'clamproxy: freshclam is on a cool-down, so it has not asked the gateway yet'
        }
    }
    finally {
        if (Test-Path $untested) { Move-Item $untested $Conf -Force }
        if ($running) { Start-Service -Name $Service }
    }
    Write-Output "clamproxy: freshclam works with the gateway; the former file is $backup"
    exit 0
}
catch {
    Write-Output "clamproxy: $_"
    exit 1
}
